//! The load under which leaves come and go.

use crate::support::{PATIENCE, Pair};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clients that write to every range all the time, whatever holds it. Days are few, so that keys come back.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(crate) async fn start(pair: &Pair) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for seed in 0..3 {
            let client = pair.source.connect("postgres").await;
            let (stop, done) = (stop.clone(), done.clone());
            clients.push(tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed);
                while !stop.load(Ordering::Relaxed) {
                    let (id, day) = (rng.random_range(0..60), rng.random_range(0..80) * 10);
                    let write = match rng.random_range(0..10) {
                        0..=6 => format!("INSERT INTO events VALUES ({id}, {day}, md5(random()::text)) ON CONFLICT (id, day) DO UPDATE SET body = excluded.body"),
                        7 => format!("DELETE FROM events WHERE id = {id} AND day = {day}"),
                        8 => format!("UPDATE events SET body = body || '+' WHERE day = {day} AND id % 7 = 0"),
                        _ => format!("UPDATE events e SET day = (e.day + 330) % 800 WHERE id = {id} AND day = {day} \
                             AND NOT EXISTS (SELECT FROM events o WHERE o.id = e.id AND o.day = (e.day + 330) % 800)"),
                    };
                    // A partition that is gone at this moment, a deadlock with the DDL, a key that another client was quicker to take.
                    if client.batch_execute(&write).await.is_ok() {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }));
        }
        Load { stop, done, clients }
    }

    pub(crate) async fn progress(&self, count: u64) {
        let (until, deadline) = (self.done.load(Ordering::Relaxed) + count, Instant::now() + PATIENCE);
        while self.done.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < deadline, "the load stands still");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}
