//! What all checks share: the two sessions, what the spec asks for, and what `segue run` would say to it.
//!
//! What is compared is asked for tables that are there on both sides; that one is missing is said once.

use super::{Finding, Verdict};
use crate::birth::{self, Direction, stream_name};
use crate::catalog::{self, Catalog, server};
use crate::error::fault_of;
use crate::schema;
use crate::sequences::Sequences;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::spec::Profile;
use segue_model::switch::Side;
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Row};

/// What the spec says, as far as a check needs it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The migration's name.
    pub migration: &'a str,
    /// How the target is reached: host, port and database.
    pub target: &'a str,
    /// Every table and where it goes.
    pub pairs: &'a [(QualifiedName, QualifiedName)],
    /// What kind of servers these are.
    pub profile: Profile,
    /// How many regions are copied at a time.
    pub copy_workers: usize,
    /// The log that the source may keep before the backfill yields.
    pub retained_wal_bytes_max: u64,
    /// How long writes may be held up.
    pub max_write_hold: Duration,
    /// Replicas that may be late.
    pub replicas_ignored: &'a [String],
    /// DDL on the tables is to be refused.
    pub guard_ddl: bool,
    /// Writes are to be handed over with a way back.
    pub way_back: bool,
    /// Tables that the target lacks are created there, as the source has them.
    pub creates_missing: bool,
}

/// Two sessions of Segue's, and what was learnt first.
pub struct Looks<'a> {
    source: &'a Client,
    target: &'a Client,
    pub(super) asked: Asked<'a>,
    catalog: Catalog,
    back: Catalog,
    refusals: Vec<Fault>,
    /// Why the way back cannot be made.
    pub(super) no_way_back: Vec<Fault>,
    /// Places of the pairs that are there on both sides.
    there: HashSet<usize>,
    /// Paired when first asked for: it is among the longest looks at a large catalogue.
    sequences: OnceCell<Sequences>,
}

/// The tables `$1`, `$2` (schemas and names, in the order of the pairs) and all that is below them.
const TREE: &str = "WITH RECURSIVE root(no, oid) AS MATERIALIZED (
        SELECT w.no, c.oid FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w(nspname, relname, no)
          JOIN pg_namespace n ON n.nspname = w.nspname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname),
    tree(no, oid) AS (
        SELECT no, oid FROM root
        UNION SELECT t.no, i.inhrelid FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_inherits i ON i.inhparent = t.oid)";

impl<'a> Looks<'a> {
    /// Reads both catalogs, as `segue run` does. The sessions are [`crate::connect::Endpoint::connect`]'s.
    pub async fn read(
        source: &'a mut Client,
        target: &'a mut Client,
        asked: Asked<'a>,
    ) -> Outcome<Looks<'a>> {
        let mut refusals = server::source_refusals(source).await?;
        refusals.extend(server::target_refusals(source, target).await?);
        for (side, client) in [(Side::Source, &*source), (Side::Target, &*target)] {
            let refusal = match schema::refusal(client).await {
                Ok(refusal) => refusal,
                // It may not be ours to look at: `segue run` could not use it either.
                Err(fault) if fault.recovery == Recovery::Operator => Some(fault),
                Err(fault) => return Err(fault),
            };
            refusals.extend(refusal.map(|fault| fault.during(format_args!("on the {side}"))));
        }
        let mut catalog = catalog::read(source, target, asked.pairs).await?;
        refusals.append(&mut catalog.refusals);
        refusals.extend(pair_refusal(source, (&*target, asked.target), asked.migration).await?);
        // Once it is born, the slot and the rows on the target are Segue's.
        if !birth::is_known(target, asked.migration, Direction::Forward).await? {
            refusals.extend(refusal_of(birth::in_the_way(source, asked.migration).await)?);
            // Nobody is to be told to empty tables that have the newest rows.
            match refusal_of(birth::source_owns(source, asked.migration).await)? {
                Some(closed) => refusals.push(closed),
                None => refusals.extend(catalog::nonempty_targets(target, &catalog.tables).await?),
            }
        }
        let (mut back, mut no_way_back) = (Catalog::default(), Vec::new());
        if asked.way_back {
            back = catalog::read_reverse(source, target, asked.pairs).await?;
            back.refusals.splice(..0, server::reverse_refusals(source, target).await?);
            no_way_back = back.refusals.clone();
            let is_said =
                |fault: &Fault| refusals.iter().any(|r| (r.code, &r.what) == (fault.code, &fault.what));
            no_way_back.retain(|fault| !is_said(fault));
        }
        let mut looks = Looks {
            source,
            target,
            asked,
            catalog,
            back,
            refusals,
            no_way_back,
            there: HashSet::new(),
            sequences: OnceCell::new(),
        };
        looks.there = looks.pairs_there().await?;
        Ok(looks)
    }

    /// The plan of the way back, with everything that stands in its way.
    pub fn back(&self) -> &Catalog {
        &self.back
    }

    /// The plan's facts; its refusals are among the findings.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The source's sequences and those of the target that go on for them.
    pub async fn sequences(&self) -> Outcome<&Sequences> {
        let tables = &self.catalog.tables;
        let pair = || Sequences::pair(self.source, self.target, tables, Direction::Forward);
        self.sequences.get_or_try_init(pair).await
    }

    /// What `segue run` refuses.
    pub(super) fn refusals(&self) -> impl Iterator<Item = &Fault> {
        self.refusals.iter()
    }

    /// A refusal of `segue run` as a finding.
    pub(super) fn refused(&self, fault: &Fault) -> Finding {
        let names = self.asked.pairs.iter().flat_map(|(from, to)| [from, to]).map(ToString::to_string);
        let object = names.filter(|name| fault.what.starts_with(&format!("{name} "))).max();
        let (side, remedy) = addressed(&fault.next_step);
        if self.asked.creates_missing && is_missing_on_target(fault) {
            let what = format!("{}: it is created there as the source has it", fault.what);
            let remedy = "`segue plan --schema-only-plan` shows the statements".to_owned();
            return Finding { verdict: Verdict::Pass, side, object, what, remedy };
        }
        let what = format!("{} [{}]", fault.what, fault.code);
        Finding { verdict: Verdict::Refuse, side, object, what, remedy: remedy.to_owned() }
    }

    pub(super) fn client(&self, side: Side) -> &Client {
        match side {
            Side::Source => self.source,
            Side::Target => self.target,
        }
    }

    /// The sides that a stream comes from: the source, and with a way back the target.
    pub(super) fn sending(&self) -> impl Iterator<Item = Side> + use<> {
        let way_back = self.asked.way_back;
        Side::ALL.into_iter().filter(move |side| *side == Side::Source || way_back)
    }

    /// The sides that a stream lands on: the target, and with a way back the source.
    pub(super) fn landing(&self) -> impl Iterator<Item = Side> + use<> {
        self.sending().map(Side::other)
    }

    /// What the slot and the publication of this migration are called on either side.
    pub(super) fn own_names(&self) -> Vec<String> {
        let named = |direction| stream_name(self.asked.migration, direction).ok();
        [Direction::Forward, Direction::Reverse].into_iter().filter_map(named).collect()
    }

    /// What the table `no` of an answer is called on this side.
    pub(super) fn table(&self, side: Side, no: i64) -> QualifiedName {
        let pair = usize::try_from(no - 1).ok().and_then(|at| self.asked.pairs.get(at));
        pair.map_or_else(|| QualifiedName::new("", ""), |pair| named(side, pair).clone())
    }

    /// The target's name of a table of the source: its pair's, or its own.
    pub(super) fn counterpart(&self, name: &QualifiedName) -> QualifiedName {
        self.asked.pairs.iter().find(|(from, _)| from == name).map_or(name, |(_, to)| to).clone()
    }

    /// Asks one side something that is not about tables.
    pub(super) async fn ask(&self, side: Side, sql: &str) -> Outcome<Vec<Row>> {
        self.client(side)
            .query(sql, &[])
            .await
            .map_err(|e| fault_of(&e).during(format_args!("asking the {side}")))
    }

    /// Asks one side about its tables: `sql` goes on after `root(no, oid)`, the tables of the spec by their places in it, and
    /// `tree(no, oid)`, with their partitions.
    pub(super) async fn ask_tables(&self, side: Side, sql: &str) -> Outcome<Vec<Row>> {
        self.ask_about(side, sql, |_| true).await
    }

    /// The same, without tables that the other side lacks: for what is compared.
    pub(super) async fn ask_pairs(&self, side: Side, sql: &str) -> Outcome<Vec<Row>> {
        self.ask_about(side, sql, |at| self.there.contains(&at)).await
    }

    /// Asks the source about tables that the target lacks.
    pub(super) async fn ask_unmade(&self, sql: &str) -> Outcome<Vec<Row>> {
        self.ask_about(Side::Source, sql, |at| !self.there.contains(&at)).await
    }

    /// Asks both sides, to compare them.
    pub(super) async fn ask_both(&self, sql: &str) -> Outcome<[Vec<Row>; 2]> {
        Ok([self.ask_pairs(Side::Source, sql).await?, self.ask_pairs(Side::Target, sql).await?])
    }

    async fn ask_about(&self, side: Side, sql: &str, is_meant: impl Fn(usize) -> bool) -> Outcome<Vec<Row>> {
        let names = self.asked.pairs.iter().enumerate();
        // One that is left out keeps its place.
        let names = names.map(|(at, pair)| is_meant(at).then(|| named(side, pair)));
        let (schemas, tables): (Vec<Option<&str>>, Vec<Option<&str>>) =
            names.map(|name| name.map(|n| (n.schema.as_str(), n.name.as_str())).unzip()).unzip();
        let rows = self.client(side).query(&format!("{TREE} {sql}"), &[&schemas, &tables]).await;
        rows.map_err(|e| fault_of(&e).during(format_args!("asking the {side} about its tables")))
    }

    async fn pairs_there(&self) -> Outcome<HashSet<usize>> {
        let mut there: HashSet<usize> = (0..self.asked.pairs.len()).collect();
        for side in Side::ALL {
            let rows = self.ask_tables(side, "SELECT no FROM root").await?;
            let here: HashSet<usize> =
                rows.iter().filter_map(|row| usize::try_from(row.get::<_, i64>(0) - 1).ok()).collect();
            there.retain(|at| here.contains(at));
        }
        Ok(there)
    }
}

/// What a pair's table is called on this side.
fn named(side: Side, (from, to): &(QualifiedName, QualifiedName)) -> &QualifiedName {
    match side {
        Side::Source => from,
        Side::Target => to,
    }
}

/// Writes are handed over only with a way back. What stands in its way stops no `segue run`, but every switch.
pub(super) async fn way_back(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let finding = |fault: &Fault| {
        let finding = looks.refused(fault);
        let what = format!("the way back: {}: writes could not be handed over", finding.what);
        Finding { verdict: Verdict::Warn, what, ..finding }
    };
    Ok(looks.no_way_back.iter().map(finding).collect())
}

/// Why what is on the source is not for this target. That it may not be looked at is said of the schema already.
async fn pair_refusal(
    source: &Client,
    target: birth::Reached<'_>,
    migration: &str,
) -> Outcome<Option<Fault>> {
    match birth::only_target(source, target, migration).await {
        Ok(()) => Ok(None),
        Err(fault) if fault.code == "SEGUE-OTHER-TARGET" => Ok(Some(fault)),
        Err(fault) if fault.recovery == Recovery::Operator => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Why a stream could not be made.
fn refusal_of(asked: Outcome<()>) -> Outcome<Option<Fault>> {
    match asked {
        Ok(()) => Ok(None),
        Err(fault) if fault.recovery == Recovery::Operator => Ok(Some(fault)),
        Err(fault) => Err(fault),
    }
}

/// Whether this is no more than that a table is to be created.
pub fn is_missing_on_target(fault: &Fault) -> bool {
    fault.code == "SEGUE-NO-TABLE" && fault.what.ends_with("does not exist on the target")
}

/// For which side a next step is, and what is to be done there.
fn addressed(next_step: &str) -> (Option<Side>, &str) {
    for side in Side::ALL {
        let Some(rest) = next_step.strip_prefix("on the ").and_then(|rest| rest.strip_prefix(side.name()))
        else {
            continue;
        };
        return match rest.strip_prefix(": ").or_else(|| rest.strip_prefix(", as superuser: ")) {
            Some(remedy) => (Some(side), remedy),
            None => (Some(side), next_step),
        };
    }
    (None, next_step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_told_apart_from_its_place() {
        for (step, side, remedy) in [
            ("on the source: ALTER ROLE a;", Some(Side::Source), "ALTER ROLE a;"),
            ("on the target, as superuser: GRANT a;", Some(Side::Target), "GRANT a;"),
            ("on the target, add a key", Some(Side::Target), "on the target, add a key"),
            ("list it once", None, "list it once"),
        ] {
            assert_eq!(addressed(step), (side, remedy));
        }
    }
}
