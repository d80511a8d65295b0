//! One look at a side, within its time, in a session that is opened anew when it is lost.

use segue_engine::ports::Outcome;
use segue_postgres::asking::Remembering;
use segue_postgres::catalog::server;
use segue_postgres::connect::Endpoint;
use segue_postgres::health::{self, Load};
use std::time::{Duration, Instant};

/// How long the server works on a look at most …
const STATEMENT_MAX: Duration = Duration::from_millis(1_500);
/// … and how long one is waited for, so that a server that hangs is known to within two seconds.
const PATIENCE: Duration = Duration::from_millis(1_800);
/// How long a session may take to be there: the network and the login are nobody's load.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What a look has come to.
#[derive(Debug)]
pub(super) enum Seen {
    /// All of it.
    Whole {
        /// How busy the side is.
        load: Load,
        /// Log that it keeps for the stream, if there is one.
        retained_bytes: Option<u64>,
        /// How long the look took.
        took: Duration,
        /// What to grant so that all is shown, if it is not.
        blind: Option<String>,
    },
    /// The side has not answered for so long.
    Late(Duration),
    /// It could not be looked: why.
    Failed(String),
}

/// Looks at one side.
pub(super) struct Eye {
    endpoint: Endpoint,
    session: Option<(Remembering, Option<String>)>,
}

impl Eye {
    /// Opens no session yet.
    pub(super) fn of(endpoint: Endpoint) -> Eye {
        Eye { endpoint, session: None }
    }

    /// Takes a look, also at the slot of this name.
    pub(super) async fn look(&mut self, slot: Option<&str>) -> Seen {
        // After a look that did not come to its end nobody knows what the session is doing: another one is opened.
        let session = self.session.take().filter(|(client, _)| !client.is_closed());
        let (client, blind) = match session {
            Some(session) => session,
            None => match tokio::time::timeout(CONNECT_PATIENCE, self.open()).await {
                Ok(Ok(session)) => session,
                Ok(Err(fault)) => return Seen::Failed(fault.what),
                Err(_) => return Seen::Failed(format!("no session within {} s", CONNECT_PATIENCE.as_secs())),
            },
        };
        let began = Instant::now();
        let retained = async {
            match slot {
                Some(slot) => server::slot_state(&client, slot).await.map(|state| Some(state.retained_bytes)),
                None => Ok(None),
            }
        };
        let whole = async { tokio::try_join!(health::load(&client), retained) };
        let looked = tokio::time::timeout(PATIENCE, whole).await;
        let took = began.elapsed();
        match looked {
            Ok(Ok((load, retained_bytes))) => {
                self.session = Some((client, blind.clone()));
                Seen::Whole { load, retained_bytes, took, blind }
            }
            // The server has given up on it by itself.
            Ok(Err(_)) if took >= STATEMENT_MAX => Seen::Late(took),
            Ok(Err(fault)) => Seen::Failed(fault.what),
            Err(_) => Seen::Late(took),
        }
    }

    async fn open(&self) -> Outcome<(Remembering, Option<String>)> {
        let client = health::session(&self.endpoint, STATEMENT_MAX).await?;
        let blind = health::blindness(&client).await?;
        Ok((client, blind))
    }
}
