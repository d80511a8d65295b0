//! A role of its own for Segue, with what `segue plan --grants` prints and no more; and the plan, looked at before the move.

use serde_json::Value;

use super::segue::Segue;
use super::servers::Server;
use super::{DemoError, Story, write_spec};

/// What the role is called unless the spec logs in as somebody of less power than a superuser.
const ROLE: &str = "segue";
/// Before it a superuser is needed: nobody else may set `session_replication_role`.
const MAJOR_MIN: u32 = 15;

impl Story {
    /// Gives Segue its role on both sides, if that can be, and has the spec log in with it. Then shows what the plan says.
    pub(super) async fn plan(&self, segue: &Segue) -> Result<(), DemoError> {
        write_spec(&self.spec, &self.servers, None)?;
        if self.servers.major >= MAJOR_MIN {
            let mut statements = [0; 2];
            let sides =
                [("--grants=source", &self.servers.source), ("--grants=target", &self.servers.target)];
            for ((side, server), count) in sides.into_iter().zip(&mut statements) {
                self.narrator.detail(&format!("$ segue plan {side} | psql"));
                *count = give(server, &segue.grants(side).await?).await?;
            }
            write_spec(&self.spec, &self.servers, Some(ROLE))?;
            self.narrator.detail(&format!(
                "Segue has a role of its own there, which is no superuser: {} and {} statements gave it what it needs.",
                statements[0], statements[1]
            ));
        }
        self.narrator.detail("$ segue plan");
        let plan = segue.plan().await?;
        let text = |path: &str| plan.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let many = |path: &str| plan.pointer(path).and_then(Value::as_array).map_or(0, Vec::len);
        self.narrator.detail(&format!(
            "Nothing stands in the way: {} checks. {} statements will be run in its life, all of them known.",
            many("/checks"),
            many("/changes")
        ));
        self.narrator.detail(&text("/way_back/sentence"));
        Ok(())
    }
}

/// Runs the statements as a superuser; returns how many.
async fn give(server: &Server, statements: &[String]) -> Result<usize, DemoError> {
    let client = server.connect().await?;
    let fault = |error| DemoError::sql("giving Segue a role of its own", &error);
    for statement in statements {
        client.batch_execute(statement).await.map_err(fault)?;
    }
    client.batch_execute(&server.password_for(ROLE)).await.map_err(fault)?;
    Ok(statements.len())
}
