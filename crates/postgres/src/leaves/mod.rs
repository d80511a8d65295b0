//! The leaves of partitioned source tables: which ones the stream has, which have come and which are gone.
//!
//! Owns the stream's plan. What it decides about a leaf never goes back: one that was found gone once leaves the stream,
//! even if it was attached again in the meantime; it then comes back as a new one.

mod adopt;
mod leave;
mod store;

pub(crate) use leave::signal_sql;
pub(crate) use store::born_sql;
pub use store::{Known, remember_born, settle};
pub(crate) use store::{Mark, late, mark, store};

use crate::birth::{Direction, StreamIdentity, origin_name};
use crate::catalog::{SourceRelation, drift};
use crate::connect::Endpoint;
use crate::copy::{Place, Relations};
use crate::error::fault_of;
use crate::stream::{Departed, LeafWatch, RelationPlan, StreamPlan};
use leave::{Leave, Leaving, Loose};
use segue_engine::fault::Fault;
use segue_engine::killpoint;
use segue_engine::ports::{Drift, Outcome, Part};
use segue_model::change::Leaf;
use segue_model::name::QualifiedName;
use segue_model::table::{Table, TableId, UnitId};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Client;

/// The leaves of one stream.
pub struct Book {
    endpoint: Endpoint,
    stream: StreamIdentity,
    token: i64,
    tables: Vec<Table>,
    by_id: HashMap<TableId, Arc<Table>>,
    plan: watch::Sender<Arc<StreamPlan>>,
    state: Mutex<State>,
    /// The numbers of the tables themselves.
    roots: HashMap<TableId, u32>,
    /// A session for short questions, opened when first needed.
    session: tokio::sync::Mutex<Option<Arc<Client>>>,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<SourceRelation>,
    /// Gone, and not yet said so in the stream by this process.
    left: Vec<Part>,
    joined: HashSet<u32>,
    /// Leaves that may hold rows of another one's range after that one is gone.
    loose: HashSet<u32>,
    shapes: drift::Shapes,
    next_unit: u32,
    /// Units promised to leaves that are not adopted yet.
    promised: HashMap<u32, UnitId>,
    /// When the last look at the leaves of a table began.
    looked: HashMap<TableId, Instant>,
}

impl Book {
    /// The leaves as they were settled, and the plan they make.
    pub async fn open(
        endpoint: Endpoint,
        stream: StreamIdentity,
        token: i64,
        tables: &[Arc<Table>],
        known: Known,
    ) -> Outcome<Book> {
        let client = endpoint.connect("leaves").await?;
        let signal = client.query_one("SELECT 'segue.signal'::regclass::oid", &[]);
        let signal: u32 = signal.await.map_err(|e| fault_of(&e).during("looking for segue.signal"))?.get(0);
        let copies: Vec<Table> = tables.iter().map(|table| Table::clone(table)).collect();
        let shapes = drift::shapes(&client, &copies).await?;
        let Known { live, left, joined, rebound, next_unit } = known;
        if let (Direction::Reverse, Some(part)) = (stream.direction, left.first()) {
            return Err(not_on_the_way_back(&part.name));
        }
        let roots = tables.iter().filter_map(|table| Some((table.id, shapes.number_of(&table.source)?)));
        let roots = roots.collect();
        let loose = live.iter().map(|r| r.oid).filter(|oid| shapes.is_loose(*oid)).chain(rebound).collect();
        let opposite = stream.direction.opposite();
        let plan = StreamPlan {
            migration: stream.migration.clone(),
            signal,
            own_origin: Some(origin_name(&stream.migration, opposite)),
            ..StreamPlan::default()
        };
        let book = Book {
            endpoint,
            stream,
            token,
            tables: copies,
            by_id: tables.iter().map(|table| (table.id, table.clone())).collect(),
            plan: watch::Sender::new(Arc::new(plan)),
            roots,
            state: Mutex::new(State { live, left, joined, loose, shapes, next_unit, ..State::default() }),
            session: tokio::sync::Mutex::new(Some(Arc::new(client))),
        };
        let state = book.lock();
        let mut relations = HashMap::new();
        for relation in &state.live {
            relations.insert(relation.oid, Arc::new(book.relation_plan(&state, relation)?));
        }
        book.plan.send_modify(|plan| {
            let plan = Arc::make_mut(plan);
            plan.relations = relations;
            state.left.iter().for_each(|part| depart(plan, part));
        });
        drop(state);
        Ok(book)
    }

    /// The stream's plan, as it changes.
    pub(crate) fn plan(&self) -> watch::Receiver<Arc<StreamPlan>> {
        self.plan.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock ends the run; the book is never used after it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session(&self) -> Outcome<Arc<Client>> {
        let mut session = self.session.lock().await;
        match &*session {
            Some(client) if !client.is_closed() => Ok(client.clone()),
            Some(_) | None => {
                let client = Arc::new(self.endpoint.connect("leaves").await?);
                *session = Some(client.clone());
                Ok(client)
            }
        }
    }

    fn table(&self, id: TableId) -> Outcome<&Arc<Table>> {
        let unknown = || Fault::bug("SEGUE-TABLE", format!("table number {} is not in the plan", id.0));
        self.by_id.get(&id).ok_or_else(unknown)
    }

    fn relation_plan(&self, state: &State, relation: &SourceRelation) -> Outcome<RelationPlan> {
        Ok(RelationPlan {
            table: self.table(relation.table)?.clone(),
            unit: relation.unit,
            leaf: relation.leaf.clone(),
            loose: state.loose.contains(&relation.oid),
            expected: Vec::new(),
        })
    }

    /// Puts a relation's plan as the state has it now.
    fn replan(&self, state: &State, relation: &SourceRelation) -> Outcome<()> {
        let planned = Arc::new(self.relation_plan(state, relation)?);
        self.plan.send_modify(|plan| {
            let plan = Arc::make_mut(plan);
            plan.ignored.remove(&relation.oid);
            plan.relations.insert(relation.oid, planned);
        });
        Ok(())
    }

    /// Relations that are gone: from now on the stream's reader passes over them. What it then leaves out is removed by
    /// the signal with which the leaf leaves, whatever it was. That they are gone is stored first: from here on they leave,
    /// whatever becomes of them or of this process.
    async fn part_with(&self, gone: &HashSet<u32>) -> Outcome<()> {
        let is_gone = |r: &&SourceRelation| r.leaf.is_some() && gone.contains(&r.oid);
        let parts: Vec<Part> =
            self.lock().live.iter().filter(is_gone).filter_map(SourceRelation::part).collect();
        if parts.is_empty() {
            return Ok(());
        }
        if self.stream.direction == Direction::Reverse {
            return Err(not_on_the_way_back(&parts[0].name));
        }
        // Not in the session that others ask in: a transaction that fails there is theirs, too.
        let client = self.endpoint.connect("leaves").await?;
        store::remember_gone(&client, &self.stream, self.token, &parts).await?;
        let gone = parts.iter().map(|part| part.relation).collect();
        self.pass_over(&mut self.lock(), &gone);
        killpoint::pass("leaf.gone");
        Ok(())
    }

    fn pass_over(&self, state: &mut State, gone: &HashSet<u32>) {
        let (left, live) = std::mem::take(&mut state.live)
            .into_iter()
            .partition(|r| r.leaf.is_some() && gone.contains(&r.oid));
        state.live = live;
        let left: Vec<SourceRelation> = left;
        for part in left.iter().filter_map(SourceRelation::part) {
            state.joined.remove(&part.relation);
            self.plan.send_modify(|plan| depart(Arc::make_mut(plan), &part));
            state.left.push(part);
        }
    }

    /// See [`segue_engine::ports::Source::drift`].
    pub(crate) async fn drift(&self) -> Outcome<Vec<Drift>> {
        let client = self.session().await?;
        let side = self.stream.direction.from_side();
        let (live, was) = {
            let state = self.lock();
            (state.live.clone(), state.shapes.clone())
        };
        let (found, now) = drift::drift(&client, side, &self.tables, &live, &was).await?;
        let published = drift::published(&client, &self.stream.publication).await?;
        let mut said: Vec<Drift> = found.faults.into_iter().map(Drift::Fault).collect();
        let lost: Vec<SourceRelation> = {
            let state = self.lock();
            let unpublished =
                |r: &&SourceRelation| !published.contains(&r.oid) && state.joined.contains(&r.oid);
            state.live.iter().filter(unpublished).cloned().collect()
        };
        if said.is_empty() {
            let whole = lost.iter().filter(|r| r.leaf.is_none());
            said.extend(whole.map(|r| Drift::Fault(taken_out(r, &self.stream.publication))));
        }
        // Of a table that cannot be found by its name all leaves would seem to be gone.
        if !said.is_empty() {
            return Ok(said);
        }
        let gone = found.detached.iter().chain(&lost).map(|r| r.oid).collect();
        self.part_with(&gone).await?;
        let mut state = self.lock();
        state.shapes = now;
        said.extend(found.rewritten.into_iter().map(Drift::Rewritten));
        for relation in found.rebound {
            said.extend(self.rebound(&mut state, &relation)?);
        }
        if self.stream.direction == Direction::Reverse {
            let came = found.attached.iter().map(|attached| &attached.relation.name);
            said.extend(came.map(not_on_the_way_back).map(Drift::Fault));
            return Ok(said);
        }
        said.extend(state.left.iter().cloned().map(Drift::Detached));
        let leaving: HashSet<u32> = state.left.iter().map(|part| part.relation).collect();
        for drift::Attached { relation, .. } in found.attached {
            let known = leaving.contains(&relation.oid) || state.live.iter().any(|r| r.oid == relation.oid);
            let Some(part) = relation.part().filter(|_| !known) else { continue };
            let unit = self.promise(&mut state, part.relation);
            said.push(Drift::Attached(Part { unit, ..part }));
        }
        Ok(said)
    }

    fn promise(&self, state: &mut State, oid: u32) -> UnitId {
        if let Some(unit) = state.promised.get(&oid) {
            return *unit;
        }
        let unit = UnitId(state.next_unit);
        state.next_unit = state.next_unit.saturating_add(1);
        state.promised.insert(oid, unit);
        unit
    }

    fn rebound(&self, state: &mut State, now: &SourceRelation) -> Outcome<Option<Drift>> {
        state.loose.insert(now.oid);
        let Some(at) = state.live.iter().position(|r| r.oid == now.oid) else { return Ok(None) };
        state.live[at].leaf.clone_from(&now.leaf);
        let relation = state.live[at].clone();
        self.replan(state, &relation)?;
        Ok(relation.part().map(Drift::Rebound))
    }

    /// See [`segue_engine::ports::Source::adopt`].
    pub(crate) async fn adopt(&self, part: &Part) -> Outcome<bool> {
        // Of its own: locks that cannot be had in time end transactions, and others ask in the common one meanwhile.
        let client = self.endpoint.connect("leaves").await?;
        let table = self.table(part.table)?;
        let facts = adopt::facts(&client, table, part).await?;
        {
            let mut state = self.lock();
            state.promised.remove(&part.relation);
            if !state.live.iter().any(|r| r.oid == part.relation) {
                let leaf = Leaf { name: part.name.to_string(), condition: part.condition.clone() };
                state.live.push(SourceRelation {
                    oid: part.relation,
                    table: part.table,
                    unit: part.unit,
                    leaf: Some(leaf),
                    name: part.name.clone(),
                });
                if state.shapes.is_loose(part.relation) {
                    state.loose.insert(part.relation);
                }
            }
            let Some(relation) = state.live.iter().find(|r| r.oid == part.relation).cloned() else {
                return Ok(false);
            };
            // First the plan, so that the stream knows the leaf before anything of it can come.
            self.replan(&state, &relation)?;
        }
        let joined = match &facts {
            Some(facts) => {
                adopt::check(self.stream.direction.from_side(), table, facts)?;
                adopt::join(&client, &self.stream, self.token, part).await?
            }
            None => false,
        };
        if joined {
            self.lock().joined.insert(part.relation);
        } else {
            self.part_with(&HashSet::from([part.relation])).await?;
        }
        Ok(joined)
    }

    /// See [`segue_engine::ports::Source::leave`].
    pub(crate) async fn leave(&self, part: &Part) -> Outcome<u64> {
        let table = self.table(part.table)?;
        loop {
            let loose = self.loose(part);
            let leave = Leave {
                endpoint: &self.endpoint,
                stream: &self.stream,
                token: self.token,
                table,
                part,
                loose: &loose,
            };
            match leave.run().await? {
                Leaving::Signal(signal) => {
                    self.lock().left.retain(|left| (left.unit, left.relation) != (part.unit, part.relation));
                    return Ok(signal);
                }
                Leaving::First(other) => {
                    self.part_with(&HashSet::from([other.relation])).await?;
                    // It stays among those that are gone, so that the next look finds it there and finishes it.
                    let leave = Leave { part: &other, loose: &[], ..leave };
                    leave.run().await?;
                }
            }
        }
    }

    /// Leaves in the stream that may hold rows of `part`'s range.
    fn loose(&self, part: &Part) -> Vec<Loose> {
        let state = self.lock();
        let of_table = state.live.iter().filter(|r| r.table == part.table && state.joined.contains(&r.oid));
        let loose = of_table.filter(|r| r.oid != part.relation && state.loose.contains(&r.oid));
        loose.filter_map(|r| r.part().map(|part| Loose { part })).collect()
    }

    /// See [`segue_engine::ports::Source::has_parts`].
    pub(crate) fn has_parts(&self, table: &Table) -> bool {
        self.lock().shapes.is_partitioned(&table.source)
    }

    /// See [`segue_engine::ports::Source::parts`]. A partition that is detached and attached again has another row in
    /// `pg_inherits`, hence another `xmin`.
    pub(crate) async fn parts(&self, table: &Table) -> Outcome<Option<String>> {
        if !self.has_parts(table) {
            return Ok(Some(String::new()));
        }
        let followed = {
            let state = self.lock();
            let live: HashSet<u32> = state
                .live
                .iter()
                .filter(|r| r.table == table.id && r.leaf.is_some())
                .map(|r| r.oid)
                .collect();
            let leaving = state.left.iter().any(|part| part.table == table.id);
            let arriving = live.iter().any(|oid| !state.joined.contains(oid));
            (!leaving && !arriving).then_some(live)
        };
        let Some(followed) = followed else { return Ok(None) };
        let sql = "WITH RECURSIVE tree(oid, made) AS (
                SELECT to_regclass($1)::oid, ''
                UNION ALL SELECT i.inhrelid, concat(i.xmin, CASE WHEN to_jsonb(i) -> 'inhdetachpending' = 'true' THEN ' detaching' END)
                  FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p' JOIN pg_inherits i ON i.inhparent = t.oid)
            SELECT string_agg(format('%s:%s', t.oid, t.made), ',' ORDER BY t.oid) FILTER (WHERE NOT t.made LIKE '% detaching'),
                   coalesce(array_agg(t.oid) FILTER (WHERE t.made <> '' AND c.relkind <> 'p'), '{}'),
                   bool_or(t.made LIKE '% detaching')
              FROM tree t JOIN pg_class c ON c.oid = t.oid";
        let client = self.session().await?;
        let row = client.query_one(sql, &[&table.source.sql()]).await;
        let row = row.map_err(|e| fault_of(&e).during("looking what a table is made of"))?;
        let leaves: HashSet<u32> = row.get::<_, Vec<u32>>(1).into_iter().collect();
        let made_of: Option<String> = row.get(0);
        // DETACH CONCURRENTLY: out of sight for new queries, and still in the catalog until FINALIZE.
        let detaching = row.get::<_, Option<bool>>(2).unwrap_or(false);
        Ok(made_of.filter(|_| leaves == followed && !detaching))
    }

    /// Looks which leaves of the table of `oid` are gone, before rows of `oid` are read on that arrived at `arrived`: whatever
    /// they were decoded with is seen by every look that began after that.
    async fn look_at(&self, oid: u32, arrived: Instant) -> Outcome<()> {
        let began = Instant::now();
        let (table, leaves) = {
            let state = self.lock();
            let of = state.live.iter().find(|r| r.oid == oid && r.leaf.is_some());
            let Some(table) = of.map(|r| r.table) else { return Ok(()) };
            if state.looked.get(&table).is_some_and(|looked| *looked > arrived) {
                return Ok(());
            }
            let leaves = state.live.iter().filter(|r| r.table == table && state.joined.contains(&r.oid));
            (table, leaves.map(|r| r.oid).collect::<Vec<u32>>())
        };
        let root = self.table(table)?.source.sql();
        let sql = "SELECT to_regclass($2) IS NULL, ARRAY(SELECT o FROM unnest($1::oid[]) o
                WHERE pg_partition_root(o) IS DISTINCT FROM to_regclass($2))";
        let client = self.session().await?;
        let row = client.query_one(sql, &[&leaves, &root]).await;
        let row = row.map_err(|e| fault_of(&e).during("looking which leaves are gone"))?;
        if row.get(0) {
            return Err(drift::nameless(&self.table(table)?.source, self.stream.direction.from_side()));
        }
        let gone = row.get::<_, Vec<u32>>(1).into_iter().collect();
        self.part_with(&gone).await?;
        self.lock().looked.insert(table, began);
        Ok(())
    }
}

/// A leaf that is gone, in the plan.
fn depart(plan: &mut StreamPlan, part: &Part) {
    plan.relations.remove(&part.relation);
    plan.ignored.insert(part.relation);
    let leaf = Leaf { name: part.name.to_string(), condition: part.condition.clone() };
    plan.departed.insert((part.relation, part.unit), Departed { table: part.table, leaf });
}

/// A partition that came or went on the target. What to do about its rows depends on who owns the writes: as long as that is
/// the source, nothing; to copy or to remove them there, as the forward stream does on the target, would lose rows.
fn not_on_the_way_back(name: &QualifiedName) -> Fault {
    let what =
        format!("the partition {name} came or went on the target: the way back does not follow such changes");
    let next_step = "undo the change, and the way back goes on; while the source owns the writes it can be made anew, too. If the target owns \
         them and the change stays, nothing leads back: `segue complete`, when it is time";
    Fault::operator("SEGUE-DDL-DRIFT", what, next_step)
}

fn taken_out(relation: &SourceRelation, publication: &str) -> Fault {
    Fault::operator(
        "SEGUE-DDL-DRIFT",
        format!(
            "{} is not in the publication {publication} any more, taken out of it or replaced by another table of this name: its \
             changes are no longer in the stream",
            relation.name
        ),
        "its rows can no longer be brought up to date: cancel the migration and start again",
    )
}

impl LeafWatch for Book {
    fn described(
        &self,
        oid: u32,
        arrived: Instant,
    ) -> Pin<Box<dyn Future<Output = Outcome<()>> + Send + '_>> {
        Box::pin(self.look_at(oid, arrived))
    }
}

impl Relations for Book {
    fn place(&self, table: &Table, unit: UnitId) -> Option<Place> {
        let state = self.lock();
        let mut of_table = state.live.iter().filter(|r| r.table == table.id);
        if unit == UnitId::from(table.id) {
            let partitioned = of_table.any(|r| r.leaf.is_some());
            let only = if partitioned { "" } else { "ONLY " };
            let from = format!("{only}{}", table.source.sql());
            let relation = self.roots.get(&table.id).map(|oid| (*oid, table.source.clone()));
            return Some(Place::Named { from, relation });
        }
        let live = of_table.find(|r| r.unit == unit).map(|r| r.oid);
        // A leaf that was found gone meanwhile can still be read if it is there, and is removed again afterwards.
        let left = state.left.iter().find(|part| part.unit == unit).map(|part| part.relation);
        live.or(left).map(Place::Numbered)
    }

    /// Rows of leaves that the stream does not have are not read with their table: nothing would keep them up to date.
    fn only(&self, table: &Table, unit: UnitId) -> Option<String> {
        if unit != UnitId::from(table.id) {
            return None;
        }
        let state = self.lock();
        let leaves = state.live.iter().filter(|r| r.table == table.id && r.leaf.is_some());
        let leaves: Vec<String> =
            leaves.filter(|r| state.joined.contains(&r.oid)).map(|r| r.oid.to_string()).collect();
        (!leaves.is_empty()).then(|| format!("tableoid = ANY ('{{{}}}'::oid[])", leaves.join(",")))
    }
}
