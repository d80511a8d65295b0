//! Indexes, and the constraints that they carry.

use super::super::facts::{Carried, IndexFacts, of};
use super::{Comparison, Kind, Pair};
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;

/// The same in all that an application can notice.
fn same(a: &IndexFacts, b: &IndexFacts) -> bool {
    let carried = |index: &IndexFacts| index.constraint.as_ref().map(|c| (c.kind, c.definition.clone()));
    a.unique == b.unique && a.definition == b.definition && carried(a) == carried(b)
}

/// What an index that was made beside writers, and not yet made a constraint, looks like.
fn is_beginning_of(begun: &IndexFacts, whole: &IndexFacts) -> bool {
    begun.name == whole.name
        && begun.constraint.is_none()
        && begun.unique == whole.unique
        && begun.definition == whole.definition
}

fn named(pair: &Pair<'_>, index: &IndexFacts) -> String {
    format!("{}.{}", quote_ident(&pair.name.schema), quote_ident(&index.name))
}

/// How people call it.
pub(in super::super) fn object(index: &IndexFacts) -> String {
    match &index.constraint {
        Some(Carried { kind: 'p', name, .. }) => format!("primary key {name}"),
        Some(Carried { kind: 'x', name, .. }) => format!("exclusion constraint {name}"),
        Some(Carried { name, .. }) => format!("unique constraint {name}"),
        None if index.unique => format!("unique index {}", index.name),
        None => format!("index {}", index.name),
    }
}

fn kind(pair: &Pair<'_>, index: &IndexFacts) -> Kind {
    match &index.constraint {
        _ if pair.kind == 'p' => Kind::PartitionedIndex,
        // Cannot be made beside writers, so after all that can.
        Some(carried) if carried.kind == 'x' || carried.deferrable => Kind::Constraint,
        Some(_) | None => Kind::Index,
    }
}

impl Comparison<'_> {
    pub(super) fn indexes(&mut self, pair: &Pair<'_>) {
        let (from, to) = (self.from, self.to);
        let theirs = of(&to.indexes, pair.to.map(|to| to.oid));
        let mut used: Vec<u32> = Vec::new();
        // The rows may contradict one that was cut short: nobody can be asked to have it.
        let ours = of(&from.indexes, Some(pair.from.oid)).iter().filter(|i| !i.is_cut_short());
        // Those of the same name first: of two alike, each keeps its own.
        let counterpart = |index: &IndexFacts, used: &[u32]| {
            let alike = theirs.iter().filter(|i| same(index, i) && !used.contains(&i.oid));
            alike.min_by_key(|i| i.name != index.name)
        };
        for index in ours {
            match counterpart(index, &used) {
                Some(found) => {
                    used.push(found.oid);
                    self.both(pair, index, found);
                }
                None => {
                    let taken = theirs.iter().find(|i| i.name == index.name);
                    used.extend(taken.map(|taken| taken.oid));
                    self.missing(pair, index, taken);
                }
            }
        }
        for extra in theirs.iter().filter(|i| !used.contains(&i.oid) && i.parent.is_none()) {
            if extra.unique || extra.constraint.is_some() {
                let what = "refuses rows that the other side takes: it is there only";
                self.find(pair, kind(pair, extra), object(extra), what, vec![drop_of(pair, extra)]);
            }
        }
    }

    /// An index that both sides have.
    fn both(&mut self, pair: &Pair<'_>, ours: &IndexFacts, theirs: &IndexFacts) {
        // That of a partitioned table is not valid before all its parts are attached, which is found with them.
        if theirs.is_cut_short() && ours.valid {
            let mut remedy = vec![drop_of(pair, theirs)];
            remedy.extend(self.make(pair, ours));
            let what = "is not valid, as its making was cut short,";
            self.find(pair, kind(pair, ours), object(ours), what, remedy);
        }
        if theirs.parent.is_none() {
            self.attach(pair, ours, theirs.name.as_str());
        }
        self.marks(pair, ours, Some(theirs));
    }

    /// An index that the other side lacks; `taken` is another one of its name.
    fn missing(&mut self, pair: &Pair<'_>, ours: &IndexFacts, taken: Option<&IndexFacts>) {
        let (what, remedy) = match taken {
            Some(begun) if begun.valid && is_beginning_of(begun, ours) => {
                ("is not made a constraint yet", self.make(pair, ours).split_off(1))
            }
            Some(other) => {
                let mut remedy = vec![drop_of(pair, other)];
                remedy.extend(self.make(pair, ours));
                ("is another one", remedy)
            }
            None => ("is missing", self.make(pair, ours)),
        };
        self.find(pair, kind(pair, ours), object(ours), what, remedy);
        self.attach(pair, ours, &ours.name);
        self.marks(pair, ours, None);
    }

    /// The statements that make it.
    fn make(&self, pair: &Pair<'_>, index: &IndexFacts) -> Vec<String> {
        let (name, table) = (quote_ident(&index.name), &pair.shown);
        let unique = if index.unique { "UNIQUE " } else { "" };
        // Of a partitioned table made from parts that are there, nothing has to be built.
        let only = if pair.kind == 'p' && !pair.whole { "" } else { "ONLY " };
        let beside_writers = self.beside_writers && pair.kind != 'p';
        match &index.constraint {
            None if beside_writers => {
                vec![format!("CREATE {unique}INDEX CONCURRENTLY {name} ON {table}{}", index.definition)]
            }
            None => {
                let only = if pair.kind == 'p' { only } else { "" };
                vec![format!("CREATE {unique}INDEX {name} ON {only}{table}{}", index.definition)]
            }
            // While it is built, an index refuses at once what a deferrable constraint allows within a transaction; and
            // an exclusion cannot be built beside writers.
            Some(carried) if beside_writers && carried.kind != 'x' && !carried.deferrable => {
                let form = if carried.kind == 'p' { "PRIMARY KEY" } else { "UNIQUE" };
                let constraint = quote_ident(&carried.name);
                vec![
                    format!("CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table}{}", index.definition),
                    format!("ALTER TABLE ONLY {table} ADD CONSTRAINT {constraint} {form} USING INDEX {name}"),
                ]
            }
            Some(carried) => {
                let (constraint, definition) = (quote_ident(&carried.name), &carried.definition);
                vec![format!("ALTER TABLE {only}{table} ADD CONSTRAINT {constraint} {definition}")]
            }
        }
    }

    /// Makes it part of the partitioned table's, as it is on the other side.
    fn attach(&mut self, pair: &Pair<'_>, ours: &IndexFacts, name: &str) {
        let Some(parent) = ours.parent.and_then(|parent| self.indexes.get(&parent).copied()) else { return };
        let Some(above) = self.pairs.get(&parent.table).filter(|above| above.kind == 'p' && above.whole)
        else {
            return;
        };
        // The other side may call the partitioned one otherwise.
        let theirs = of(&self.to.indexes, above.to.map(|to| to.oid));
        let called =
            theirs.iter().find(|index| same(parent, index)).map_or(&parent.name, |index| &index.name);
        let index = |schema: &str, name: &str| format!("{}.{}", quote_ident(schema), quote_ident(name));
        let above = index(&above.name.schema, called);
        let remedy = vec![format!("ALTER INDEX {above} ATTACH PARTITION {}", index(&pair.name.schema, name))];
        let what = format!("is not part of {called}");
        self.find(pair, Kind::AttachedIndex, object(ours), &what, remedy);
    }

    /// What is said about it: the log's identity, CLUSTER, and comments.
    fn marks(&mut self, pair: &Pair<'_>, ours: &IndexFacts, theirs: Option<&IndexFacts>) {
        let (name, table) = (theirs.map_or(ours.name.as_str(), |i| i.name.as_str()), pair.shown.clone());
        let quoted = quote_ident(name);
        if ours.replica_identity && !theirs.is_some_and(|i| i.replica_identity) {
            let remedy = vec![format!("ALTER TABLE ONLY {table} REPLICA IDENTITY USING INDEX {quoted}")];
            self.find(pair, Kind::ReplicaIdentity, object(ours), "does not identify rows in the log", remedy);
        }
        if ours.clustered && !theirs.is_some_and(|i| i.clustered) {
            let remedy = vec![format!("ALTER TABLE {table} CLUSTER ON {quoted}")];
            self.find(pair, Kind::Cluster, object(ours), "is not what CLUSTER goes by", remedy);
        }
        let at = QualifiedName::new(&pair.name.schema, name).sql();
        let comment = theirs.and_then(|i| i.comment.as_ref());
        self.comment(pair, &format!("INDEX {at}"), ours.comment.as_ref(), comment);
        if let Some(carried) = &ours.constraint {
            let other = theirs.and_then(|i| i.constraint.as_ref());
            let name = quote_ident(other.map_or(&carried.name, |other| &other.name));
            let comment = other.and_then(|other| other.comment.as_ref());
            self.comment(pair, &format!("CONSTRAINT {name} ON {table}"), carried.comment.as_ref(), comment);
        }
    }
}

fn drop_of(pair: &Pair<'_>, index: &IndexFacts) -> String {
    match &index.constraint {
        Some(carried) => {
            format!("ALTER TABLE {} DROP CONSTRAINT {}", pair.shown, quote_ident(&carried.name))
        }
        None if index.kind == 'i' && index.parent.is_none() => {
            format!("DROP INDEX CONCURRENTLY {}", named(pair, index))
        }
        None => format!("DROP INDEX {}", named(pair, index)),
    }
}
