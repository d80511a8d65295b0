//! Every statement that changes something on a server in the life of a migration, as it will be run: for people who want to
//! see them before. Nothing is run here.
//!
//! Rows are left out, but for the statement that each table's are written with: those of the tables, and those that Segue
//! keeps of a migration in its own schema. Where a server-side function of that schema runs a statement, the statement is
//! told and not the call.

use crate::birth::{self, Direction, origin_name, stream_name};
use crate::catalog::SourceRelation;
use crate::{ddl_guard, fence, origin, schema};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::switch::Side;
use segue_model::table::Table;
use serde::Serialize;

/// When in the life of a migration something is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The first `segue run`.
    Prepare,
    /// Rows are copied, and changes follow.
    Copy,
    /// The first order to hand the writes over, a rehearsal too.
    Arm,
    /// The writes change hands, in either direction.
    Switch,
    /// The way back is given up.
    Complete,
    /// Instead of all that: the migration is given up.
    Cancel,
}

/// A database of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// The source.
    Source,
    /// The target.
    Target,
    /// The control database, where it is not the target.
    Control,
}

impl On {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            On::Source => "source",
            On::Target => "target",
            On::Control => "control database",
        }
    }
}

impl From<Side> for On {
    fn from(side: Side) -> On {
        match side {
            Side::Source => On::Source,
            Side::Target => On::Target,
        }
    }
}

/// One statement, or several that are run together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When.
    pub step: Step,
    /// Where.
    pub on: On,
    /// What it is for, in a few words.
    pub what: &'static str,
    /// As it is run.
    pub sql: String,
}

/// What decides which statements there are.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// The migration's name.
    pub migration: &'a str,
    /// Its tables.
    pub tables: &'a [Table],
    /// Their relations on the source.
    pub source: &'a [SourceRelation],
    /// Their relations on the target.
    pub target: &'a [SourceRelation],
    /// What carries the fence on the source, and on the target: [`crate::fence::tree`].
    pub fenced: [&'a [QualifiedName]; 2],
    /// Sequences that go along with the writes, by their names on the target.
    pub sequences: &'a [QualifiedName],
    /// The major versions of the source and of the target.
    pub majors: [i32; 2],
    /// The control database is neither of the two.
    pub has_control: bool,
    /// Sides on which the guard against DDL is made: the spec wants it, and the role may make event triggers.
    pub guarded: &'a [Side],
    /// Regions that are copied at a time.
    pub copy_workers: usize,
}

/// All of them, in the order in which they are run.
pub fn changes(about: &About<'_>) -> Outcome<Vec<Change>> {
    let mut list = List { about, found: Vec::new() };
    list.prepare()?;
    list.copy();
    list.arm()?;
    list.switch();
    list.end(Step::Complete)?;
    list.end(Step::Cancel)?;
    Ok(list.found)
}

struct List<'a> {
    about: &'a About<'a>,
    found: Vec<Change>,
}

impl List<'_> {
    fn add(&mut self, step: Step, on: impl Into<On>, what: &'static str, sql: impl Into<String>) {
        self.found.push(Change { step, on: on.into(), what, sql: sql.into() });
    }

    fn prepare(&mut self) -> Outcome<()> {
        let control = self.about.has_control.then_some(On::Control);
        for on in [On::Source, On::Target].into_iter().chain(control) {
            for sql in schema::statements() {
                self.add(Step::Prepare, on, "what Segue keeps, in a schema of its own", sql.trim());
            }
        }
        // From the first moment only Segue writes to the side that follows.
        self.fence(Side::Target, Step::Prepare);
        self.guard(Side::Source, Step::Prepare)?;
        self.stream(Side::Source, Direction::Forward, Step::Prepare)?;
        self.origins(Side::Target, Direction::Forward, Step::Prepare);
        Ok(())
    }

    /// Publication and slot.
    fn stream(&mut self, from: Side, direction: Direction, step: Step) -> Outcome<()> {
        let name = stream_name(self.about.migration, direction)?;
        for sql in birth::publication(&name, self.relations(from)) {
            self.add(step, from, "the change stream", sql);
        }
        let [source, target] = self.about.majors;
        let major = match from {
            Side::Source => source,
            Side::Target => target,
        };
        self.add(step, from, "the change stream", birth::slot(&name, major));
        Ok(())
    }

    fn origins(&mut self, on: Side, direction: Direction, step: Step) {
        let stream = origin_name(self.about.migration, direction);
        let copies = (1..=self.about.copy_workers).map(|n| format!("{stream}{}{n}", origin::COPY));
        for name in std::iter::once(stream.clone()).chain(copies) {
            let sql = format!("SELECT pg_replication_origin_create({})", quote_literal(&name));
            self.add(step, on, "marks what Segue writes, for the stream the other way", sql);
        }
    }

    /// The fence's triggers, at rest on the side that owns the writes.
    fn fence(&mut self, on: Side, step: Step) {
        let migration = self.about.migration;
        let trigger = quote_ident(&format!("segue_fence_{migration}"));
        let function = quote_ident(&format!("fence_{migration}"));
        for table in self.fenced(on) {
            let make = format!(
                "CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION segue.{function}()"
            );
            self.add(step, on, "the fence: refuses writes on the side that does not own them", make);
            if on == Side::Source {
                let rest = format!("ALTER TABLE ONLY {table} DISABLE TRIGGER {trigger}");
                self.add(step, on, "the fence is at rest where the writes are", rest);
            }
        }
    }

    fn guard(&mut self, on: Side, step: Step) -> Outcome<()> {
        if self.about.guarded.contains(&on) {
            for sql in ddl_guard::statements_of(self.about.migration)? {
                self.add(step, on, "the guard: refuses DDL that a stream cannot follow", sql);
            }
        }
        Ok(())
    }

    fn copy(&mut self) {
        for table in self.about.tables {
            let columns: Vec<String> = table.columns.iter().map(|c| quote_ident(&c.target)).collect();
            let sql = format!("COPY {} ({}) FROM STDIN", table.target.sql(), columns.join(", "));
            self.add(
                Step::Copy,
                On::Target,
                "its rows, region by region; then INSERT, UPDATE, DELETE, TRUNCATE as they come",
                sql,
            );
        }
    }

    fn arm(&mut self) -> Outcome<()> {
        self.fence(Side::Source, Step::Arm);
        self.guard(Side::Target, Step::Arm)?;
        self.stream(Side::Target, Direction::Reverse, Step::Arm)?;
        self.origins(Side::Source, Direction::Reverse, Step::Arm);
        Ok(())
    }

    fn switch(&mut self) {
        let trigger = quote_ident(&format!("segue_fence_{}", self.about.migration));
        let sides = [Side::Source, Side::Target];
        let parameters = "(autovacuum_enabled, toast.autovacuum_enabled)";
        for on in sides {
            for table in self.stored(on) {
                let off = format!(
                    "ALTER TABLE ONLY {table} SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)"
                );
                self.add(Step::Switch, on, "keeps autovacuum's lock out of the way, meanwhile", off);
            }
        }
        for (on, verb, what) in [
            (Side::Source, "ENABLE", "the side that gives the writes away refuses them"),
            (Side::Target, "DISABLE", "the side that gets the writes takes them"),
        ] {
            for table in self.fenced(on) {
                let sql = format!("ALTER TABLE ONLY {table} {verb} TRIGGER {trigger}");
                self.add(Step::Switch, on, what, sql);
            }
        }
        for sequence in self.about.sequences {
            let name = quote_literal(&sequence.sql());
            let sql = format!("SELECT setval({name}, …)");
            self.add(Step::Switch, Side::Target, "past what the other side has given, and a margin", sql);
        }
        for on in sides {
            for table in self.stored(on) {
                let back = format!("ALTER TABLE ONLY {table} RESET {parameters}");
                self.add(Step::Switch, on, "autovacuum as it was set before", back);
            }
        }
    }

    /// What takes everything off again.
    fn end(&mut self, step: Step) -> Outcome<()> {
        let migration = self.about.migration;
        let trigger = quote_ident(&format!("segue_fence_{migration}"));
        for on in [Side::Target, Side::Source] {
            if self.about.guarded.contains(&on) {
                for sql in ddl_guard::removal_of(migration) {
                    self.add(step, on, "the guard goes", sql);
                }
            }
            // A completed migration's source refuses writes for good.
            if step == Step::Cancel || on == Side::Target {
                for table in self.fenced(on) {
                    let drop = format!("DROP TRIGGER IF EXISTS {trigger} ON {table}");
                    self.add(step, on, "the fence goes", drop);
                }
                for drop in fence::removal(migration) {
                    self.add(step, on, "the fence goes", drop);
                }
            }
            for direction in [Direction::Forward, Direction::Reverse] {
                if direction.from_side() == On::from(on).name() {
                    let name = stream_name(migration, direction)?;
                    let slot = format!("SELECT pg_drop_replication_slot({})", quote_literal(&name));
                    self.add(step, on, "the stream goes", slot);
                    let publication = format!("DROP PUBLICATION IF EXISTS {}", quote_ident(&name));
                    self.add(step, on, "the stream goes", publication);
                }
            }
        }
        if step == Step::Cancel {
            let control = self.about.has_control.then_some(On::Control);
            for on in [On::Source, On::Target].into_iter().chain(control) {
                let what = "unless another migration needs it";
                self.add(step, on, what, "DROP SCHEMA segue CASCADE");
            }
        }
        Ok(())
    }

    fn relations(&self, on: Side) -> &[SourceRelation] {
        match on {
            Side::Source => self.about.source,
            Side::Target => self.about.target,
        }
    }

    /// The relations that have rows.
    fn stored(&self, on: Side) -> Vec<String> {
        self.relations(on).iter().map(|relation| relation.name.sql()).collect()
    }

    fn fenced(&self, on: Side) -> Vec<String> {
        let [source, target] = self.about.fenced;
        let tables = match on {
            Side::Source => source,
            Side::Target => target,
        };
        tables.iter().map(QualifiedName::sql).collect()
    }
}
