//! The router as a process runs it: `segue router`, and `segue run` where the spec has a section `router`.
//!
//! * [`config`]: from the spec, its files and the sides to what the router takes
//! * [`owner`]: who owns the writes, by the control database and by the ownership rows
//! * [`follower`], [`learn`]: what the side that follows shows by now, and what may be read there
//! * [`seat`]: the seat in the control database: which routes and rules for reads are told, and what is said of them
//! * [`findings`], [`statistics`]: what the router says of reads, and of all that it served
//!
//! It drives nothing and decides nothing: routes are the driver's, and what holds writers to them are the fences.

mod config;
mod findings;
mod follower;
mod learn;
mod owner;
mod seat;
mod statistics;

use crate::drive::{interrupted, message};
use crate::exit::Exit;
use crate::sides::Sides;
use follower::Freshness;
use learn::{Learner, Lines};
use owner::Owners;
use seat::{Seat, Senders};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_router::{Config, Feeds, Handle, Heard, Reads, Router};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Between two tries to listen where another process does, whose place is to be taken once it ends.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// On top of the time for transactions: for the last words of clients, and for leaving the seat.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What is said while it runs.
pub(crate) struct News {
    /// For people.
    pub(crate) text: String,
    /// For programs.
    pub(crate) object: Value,
}

impl News {
    fn text(text: String) -> News {
        let object = message(&text);
        News { text, object }
    }
}

/// How it is said.
pub(crate) type Say = Arc<dyn Fn(&News) + Send + Sync>;

/// What a router is made from.
#[derive(Clone)]
pub(crate) struct Plan {
    spec: Spec,
    sides: Sides,
    /// What files in the spec are relative to.
    base: PathBuf,
    listen: SocketAddr,
}

impl Plan {
    /// From the spec at `path`; `listen` goes before what the spec says.
    pub(crate) fn new(spec: &Spec, path: &Path, listen: Option<SocketAddr>) -> Outcome<Plan> {
        let router = config::section(spec)?;
        let listen = listen.unwrap_or(router.listen);
        if !router.may_listen_on(listen) {
            let what = format!("`auth: trust` would let everybody in who reaches {listen}");
            return Err(Fault::operator(
                "SEGUE-ROUTER",
                what,
                "listen on 127.0.0.1, or use `auth: scram` with `users`",
            ));
        }
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Plan { spec: spec.clone(), sides: Sides::of(spec)?, base, listen })
    }

    /// Reads its files beside the sessions, which may all be served by one thread.
    async fn config(&self) -> Outcome<Config> {
        let plan = self.clone();
        let read = tokio::task::spawn_blocking(move || config::config(&plan.spec, &plan.sides, &plan.base));
        read.await.map_err(|e| Fault::bug("SEGUE-TASK", format!("the router's files were not read: {e}")))?
    }
}

/// `segue router`: serves until it is told to end.
pub(crate) async fn run(plan: Plan, json: bool) -> Exit {
    let say: Say = Arc::new(move |news: &News| {
        if json {
            crate::commands::print_json(&news.object);
        } else {
            crate::commands::print(&format!("segue: {}\n", news.text));
        }
    });
    match serve(&plan, &say, interrupted()).await {
        Ok(()) => Exit::Done,
        Err(fault) => crate::commands::fault(&fault, json),
    }
}

/// Beside a driver: what is wrong is said, and tried again, since the migration goes on without a router.
pub(crate) async fn beside(plan: Plan, say: Say, stop: watch::Receiver<bool>) {
    let mut said = String::new();
    loop {
        let told_to_end = {
            let mut stop = stop.clone();
            async move {
                let _ = stop.wait_for(|stop| *stop).await;
                "the end of `segue run`"
            }
        };
        let Err(fault) = serve(&plan, &say, told_to_end).await else { return };
        if said != fault.to_string() {
            said = fault.to_string();
            say(&News::text(format!("the router does not serve: {said}; trying again")));
        }
        let mut stop = stop.clone();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    }
}

/// Serves until `end`, whose word for it is said, and lets transactions finish.
async fn serve(plan: &Plan, say: &Say, end: impl Future<Output = &'static str>) -> Outcome<()> {
    // First of all: without a handler a wish to reload would end the process, and a driver with it.
    let hangups = signal(SignalKind::hangup());
    let mut end = std::pin::pin!(end);
    let config = plan.config().await?;
    let drain_max = config.limits.drain_max;
    let owners = Owners::new(&plan.spec, &plan.sides);
    let route = tokio::select! {
        route = owners.first() => route?,
        _ = &mut end => return Ok(()),
    };
    let (routes, followed) = watch::channel(route);
    let (reads, feeds, freshness, learner) = reading(plan, &routes, say);
    let router = Router::bind_reading(plan.listen, config, followed, feeds).await.map_err(|error| {
        Fault::operator("SEGUE-LISTEN", error.to_string(), "use another port, or end whoever listens there")
    })?;
    let handle = router.handle();
    say(&started(plan, &handle, &routes.borrow()));
    let mut running = tokio::spawn(router.run());
    let seat = Seat::new(plan, owners, Senders { routes, reads }, handle.clone(), say.clone());
    let (ended, has_ended) = watch::channel(false);
    let mut seated = tokio::spawn(async move {
        tokio::select! {
            () = seat.run(has_ended) => {}
            never = freshness.run() => match never {},
            never = learner.run() => match never {},
        }
    });
    let mut done = Ok(());
    let why = tokio::select! {
        why = reloading(plan, say, &handle, (hangups, end)) => Some(why),
        ended = &mut running => {
            done = ended.map_err(|e| Fault::bug("SEGUE-TASK", format!("the router ended unexpectedly: {e}")));
            None
        }
    };
    if let Some(why) = why {
        say(&News::text(format!("the router ends by {why}: transactions may finish, nobody gets in")));
        handle.drain();
        let _ = tokio::time::timeout(drain_max + END_PATIENCE, &mut running).await;
    }
    ended.send_replace(true);
    // Whoever waits for this router's holds need not any more.
    if tokio::time::timeout(END_PATIENCE, &mut seated).await.is_err() {
        seated.abort();
    }
    done
}

/// Everything by which reads are moved: where rules for them go, what the router hears, and those who ask both servers.
fn reading(
    plan: &Plan,
    routes: &watch::Sender<Heard>,
    say: &Say,
) -> (watch::Sender<Arc<Reads>>, Feeds, Freshness, Learner) {
    let (reads, (fresh, shown), (catalog, known)) =
        (watch::Sender::new(Arc::default()), watch::channel(None), watch::channel(None));
    let (parts_read, parts_seen) = (watch::Sender::new(None), watch::Sender::new(None));
    let feeds = Feeds { reads: reads.subscribe(), fresh: shown, catalog: known };
    let freshness = Freshness {
        migration: plan.spec.name.as_str().to_owned(),
        source: plan.sides.source.clone(),
        target: plan.sides.target.clone(),
        routes: routes.subscribe(),
        reads: reads.subscribe(),
        parts_read: parts_read.subscribe(),
        parts_seen: parts_seen.clone(),
        fresh,
        say: say.clone(),
    };
    let lines = Lines {
        routes: routes.subscribe(),
        reads: reads.subscribe(),
        parts_seen: parts_seen.subscribe(),
        parts_read,
        catalog,
    };
    (reads, feeds, freshness, Learner::new(&plan.spec, &plan.sides, lines, say.clone()))
}

/// Takes certificates and users anew at every SIGHUP, until the end.
async fn reloading(
    plan: &Plan,
    say: &Say,
    handle: &Handle,
    (hangups, mut end): (std::io::Result<Signal>, std::pin::Pin<&mut impl Future<Output = &'static str>>),
) -> &'static str {
    let Ok(mut hangups) = hangups else { return end.await };
    loop {
        tokio::select! {
            why = &mut end => return why,
            _ = hangups.recv() => match plan.config().await {
                Ok(config) => {
                    handle.reload(config);
                    say(&News::text("the router has read users and certificates again".to_owned()));
                }
                Err(fault) => {
                    say(&News::text(format!("the router keeps the users and certificates it had: {fault}")));
                }
            },
        }
    }
}

/// Where it listens, and what it goes by.
fn started(plan: &Plan, handle: &Handle, route: &Heard) -> News {
    let address = handle.address();
    let Some(router) = &plan.spec.router else {
        return News::text(format!("the router listens on {address}"));
    };
    let (auth, pool, owner, epoch) = (router.auth.name(), router.pool.name(), route.owner, route.epoch.0);
    let tls = match &router.tls {
        None => "none",
        Some(tls) if tls.required => "required",
        Some(_) => "optional",
    };
    let text = format!(
        "the router listens on {address}; the {owner} owns the writes (epoch {epoch}); pool {pool}, auth {auth}, TLS {tls}"
    );
    let object = json!({
        "listen": address.to_string(), "owner": owner, "epoch": epoch, "pool": pool, "auth": auth, "tls": tls,
    });
    News { text, object }
}
