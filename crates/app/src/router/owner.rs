//! Who owns the writes, for a router that knows no route, or whose route has met a fence.

use crate::sides::Sides;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_model::switch::Side;
use segue_model::switch::decide::{Seen, Situation, situation};
use segue_model::switch::ownership::Ownership;
use segue_model::switch::route::Route;
use segue_postgres::birth;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::RouterSeat;
use segue_postgres::fence;
use segue_router::Heard;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// How long one database may take for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a start waits until it is known who owns the writes.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What the ownership rows say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// This side takes the writes.
    Open(Route),
    /// This side owns the writes, behind a fence.
    Fenced(Route),
    /// Nobody takes them, or it cannot be known.
    Unknown,
}

/// Asks the databases.
pub(super) struct Owners {
    migration: String,
    control: Endpoint,
    source: Asked,
    target: Asked,
}

/// One side, and the session in which it is asked.
struct Asked {
    endpoint: Endpoint,
    session: Mutex<Option<Client>>,
}

impl Owners {
    pub(super) fn new(spec: &Spec, sides: &Sides) -> Owners {
        let asked = |endpoint: &Endpoint| Asked { endpoint: endpoint.clone(), session: Mutex::default() };
        Owners {
            migration: spec.name.as_str().to_owned(),
            control: sides.control.clone(),
            source: asked(&sides.source),
            target: asked(&sides.target),
        }
    }

    /// The route to begin with: what was told last, or what the rows say.
    pub(super) async fn first(&self) -> Outcome<Heard> {
        let since = Instant::now();
        self.are_a_pair().await?;
        loop {
            let told = timeout(ANSWER_PATIENCE, self.told()).await;
            let never_told = matches!(told, Ok(Ok(None)));
            let why = match told {
                Ok(Ok(Some(heard))) => return Ok(self.or_newer(heard).await),
                Ok(Ok(None)) => String::new(),
                Ok(Err(fault)) => format!("; the control database: {fault}"),
                Err(_) => "; the control database does not answer".to_owned(),
            };
            // Before the first hand-over is wanted there are no rows, and nothing to be told.
            let nothing = if never_told { Seen::Known(Ownership::FIRST_OWNER) } else { Seen::Unknown };
            match self.look_with(nothing).await {
                Found::Open(route) | Found::Fenced(route) => return Ok(Heard::now(0, route)),
                Found::Unknown if since.elapsed() < FIRST_PATIENCE => sleep(LOOK_AGAIN).await,
                Found::Unknown => {
                    let what = format!("it is not known who owns the writes of {}{why}", self.migration);
                    let next = "see that source, target and control database can be reached, then start it again; \
                                `segue status` shows who owns the writes";
                    return Err(Fault::operator("SEGUE-NO-ROUTE", what, next));
                }
            }
        }
    }

    /// Refuses a target that the migration does not go to: what is sent there by its route would be in a database that nobody
    /// fences. Sides that do not answer in time are not waited for.
    async fn are_a_pair(&self) -> Outcome<()> {
        let (source, target) = (&self.source.endpoint, &self.target.endpoint);
        let look = async {
            let clients = tokio::try_join!(source.connect("router"), target.connect("router"))?;
            birth::only_target(&clients.0, (&clients.1, &target.address()), &self.migration).await
        };
        match timeout(ANSWER_PATIENCE, look).await {
            Ok(Err(fault)) if fault.code == "SEGUE-OTHER-TARGET" => Err(fault),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// What was told, unless the rows know of a later epoch: a control database that was restored, or has failed over, may
    /// tell of an earlier one.
    async fn or_newer(&self, told: Heard) -> Heard {
        match self.look().await {
            Found::Open(route) | Found::Fenced(route) if route.epoch > told.epoch => {
                Heard::now(told.revision, route)
            }
            Found::Open(_) | Found::Fenced(_) | Found::Unknown => told,
        }
    }

    /// What both ownership rows say now.
    pub(super) async fn look(&self) -> Found {
        self.look_with(Seen::Unknown).await
    }

    async fn look_with(&self, nothing: Seen) -> Found {
        let (source, target) = tokio::join!(self.row(Side::Source), self.row(Side::Target));
        let seen = |row: Option<Option<Ownership>>, nothing| match row {
            Some(Some(ownership)) => Seen::Known(ownership),
            Some(None) => nothing,
            None => Seen::Unknown,
        };
        match situation(seen(source, nothing), seen(target, Seen::Unknown)) {
            Situation::Owned { owner, last, .. } => Found::Open(Route::to(owner, last.epoch)),
            Situation::Fenced { owner, fence, .. } => Found::Fenced(Route::to(owner, fence.epoch)),
            Situation::HandedOver { .. } | Situation::Ambiguous(_) | Situation::Contradictory { .. } => {
                Found::Unknown
            }
        }
    }

    /// `None`: the side does not answer.
    async fn row(&self, side: Side) -> Option<Option<Ownership>> {
        let asked = match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        };
        let mut slot = asked.session.lock().await;
        // A session on which a request was given up is not used again.
        let session = slot.take().filter(|session| !session.is_closed());
        let ask = async {
            let session = match session {
                Some(session) => session,
                None => asked.endpoint.connect("router").await?,
            };
            let row = fence::row(&session, &self.migration).await?;
            Ok::<_, Fault>((session, row))
        };
        match timeout(ANSWER_PATIENCE, ask).await {
            Ok(Ok((session, row))) => {
                *slot = Some(session);
                Some(row.map(|row| row.ownership))
            }
            Ok(Err(fault)) => {
                tracing::debug!("the ownership row of the {side}: {fault}");
                None
            }
            Err(_) => None,
        }
    }

    async fn told(&self) -> Outcome<Option<Heard>> {
        let Some(seat) = RouterSeat::take(&self.control, &self.migration).await? else { return Ok(None) };
        Ok(seat.told().await?.map(|told| Heard::now(told.revision, told.route)))
    }
}
