//! Autovacuum is kept away from the tables while the writes are handed over, and put back as it was.
//!
//! What has to be remembered for that is kept beside the ownership, by [`autovacuum`].

use super::Switch;
use super::act::{ARM_PATIENCE, Did, not_now};
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use segue_postgres::fence::autovacuum;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// How long whoever has asked waits for autovacuum's settings to be put back: nearly always no time at all.
const PUT_BACK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two later tries to put them back.
const PUT_BACK_PAUSE: Duration = Duration::from_secs(5);

impl Switch<'_> {
    /// Turns it off on one side, and waits until what runs has ended; says what is in the way.
    pub(super) async fn keep_autovacuum_away(&self, client: &Client) -> Outcome<Option<Did>> {
        match autovacuum::turn_off(client, (self.migration(), self.lease.token)).await {
            Err(fault) if fault.code == "SEGUE-LOCKED" => return Ok(Some(not_now(fault.what))),
            turned_off => turned_off?,
        };
        let still = autovacuum::wait_for_running(client, self.migration(), ARM_PATIENCE).await?;
        Ok(still.first().map(|running| Did::NotNow {
            why: "a vacuum of the tables does not end".into(),
            holders: vec![running.by.to_string()],
        }))
    }

    /// Autovacuum as it was before, unless somebody's lock is in the way: nothing and nobody waits for it.
    pub(super) async fn put_back_soon(&self) -> Outcome<()> {
        let put_back = match timeout(PUT_BACK_PATIENCE, self.put_back_autovacuum()).await {
            Ok(Err(fault)) if fault.code != "SEGUE-LOCKED" => return Err(fault),
            Ok(put_back) => put_back.is_ok(),
            Err(_) => false,
        };
        if !put_back {
            self.driver.screen.say(
                "autovacuum's settings cannot be put back yet: somebody locks a table; it is tried again",
            );
        }
        self.owes_autovacuum.store(!put_back, Ordering::Relaxed);
        Ok(())
    }

    /// What could not be put back, after a while.
    pub(super) async fn put_back_later(&self) -> Outcome<()> {
        sleep(PUT_BACK_PAUSE).await;
        match self.put_back_autovacuum().await {
            Ok(()) => {
                self.driver.screen.say("autovacuum's settings are as they were before");
                self.owes_autovacuum.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(fault) if fault.code == "SEGUE-LOCKED" => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Autovacuum as it was before, on both sides.
    async fn put_back_autovacuum(&self) -> Outcome<()> {
        for side in Side::ALL {
            let client = self.endpoint(side).connect("switch").await?;
            autovacuum::put_back(&client, self.migration()).await?;
        }
        Ok(())
    }
}
