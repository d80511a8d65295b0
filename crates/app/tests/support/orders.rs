//! Orders to the driver, given and answered by way of their rows in the control database.

use super::PATIENCE;
use segue_testkit::Cluster;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between two looks for an answer.
const LOOK: Duration = Duration::from_millis(20);

/// The arguments of an order to hand the writes over.
pub fn for_real() -> Value {
    json!({ "rehearse": false, "overrides": [] })
}

/// The arguments of a rehearsal.
pub fn rehearsal() -> Value {
    json!({ "rehearse": true, "overrides": [] })
}

/// Gives the driver an order; returns its number.
pub async fn order(control: &Cluster, verb: &str, arguments: &Value) -> i64 {
    let client = control.connect("postgres").await;
    let sql = "WITH asked AS (INSERT INTO segue.command (migration, verb, arguments, asked_by)
                   VALUES ('test', $1, $2::text::jsonb, 'test') RETURNING id)
               SELECT id, pg_notify('segue_command', 'test') FROM asked";
    client.query_one(sql, &[&verb, &arguments.to_string()]).await.unwrap().get(0)
}

/// The answer to an order, if there is one and the database can be asked.
pub async fn answer_now(control: &Cluster, id: i64) -> Option<Value> {
    let sql = format!("SELECT answer FROM segue.command WHERE id = {id}");
    serde_json::from_str(&control.try_scalar(&sql).await.ok()??).ok()
}

/// Waits for the answer to an order, also through restarts of the database.
pub async fn answer(control: &Cluster, id: i64) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = answer_now(control, id).await {
            return answer;
        }
        assert!(Instant::now() < until, "order {id} is not answered");
        tokio::time::sleep(LOOK).await;
    }
}

/// Gives the driver an order and returns its answer.
pub async fn ask(control: &Cluster, verb: &str, arguments: Value) -> Value {
    let id = order(control, verb, &arguments).await;
    answer(control, id).await
}
