//! Everything beside indexes and constraints.

use super::super::facts::{Attached, ColumnFacts, Grant, SequenceFacts, of};
use super::{Comparison, Finding, Kind, Pair};
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A way to say what is attached to a table.
struct Form<'f> {
    kind: Kind,
    /// What people call it, and what DROP and COMMENT do.
    word: &'static str,
    /// The statements that make it on the other table.
    make: &'f dyn Fn(&Attached) -> Vec<String>,
    /// The same for both, whatever the table is called.
    same: &'f dyn Fn(&Attached, &Attached) -> bool,
    /// As it stands behind DROP and COMMENT ON.
    named: &'f dyn Fn(&Attached) -> String,
}

impl Comparison<'_> {
    pub(super) fn rest(&mut self, pair: &Pair<'_>) {
        self.columns(pair);
        self.sequences(pair);
        self.triggers(pair);
        self.rules(pair);
        self.policies(pair);
        self.statistics(pair);
        self.published(pair);
        self.table(pair);
    }

    fn published(&mut self, pair: &Pair<'_>) {
        let (from, to) = (self.from, self.to);
        let theirs = of(&to.published, pair.to.map(|to| to.oid));
        for (_, name) in of(&from.published, Some(pair.from.oid)) {
            if theirs.iter().any(|(_, other)| other == name) {
                continue;
            }
            let (quoted, table) = (quote_ident(name), &pair.shown);
            let remedy = if to.publications.contains(name) {
                format!("ALTER PUBLICATION {quoted} ADD TABLE ONLY {table}")
            } else {
                format!("CREATE PUBLICATION {quoted} FOR TABLE ONLY {table}")
            };
            self.find(
                pair,
                Kind::Publication,
                format!("publication {name}"),
                "does not publish it",
                vec![remedy],
            );
        }
    }

    /// What is said of the table as a whole.
    fn table(&mut self, pair: &Pair<'_>) {
        let (from, to, table) = (pair.from, pair.to, pair.shown.clone());
        let alter = |what: &str| vec![format!("ALTER TABLE {table} {what}")];
        let (enabled, forced) = to.map_or((false, false), |to| to.row_security);
        if from.row_security.0 && !enabled {
            let remedy = alter("ENABLE ROW LEVEL SECURITY");
            self.find(pair, Kind::RowSecurity, "row-level security".into(), "is not enabled", remedy);
        }
        if from.row_security.1 && !forced {
            let remedy = alter("FORCE ROW LEVEL SECURITY");
            self.find(pair, Kind::RowSecurity, "row-level security".into(), "is not forced", remedy);
        }
        if enabled && !from.row_security.0 {
            let (remedy, what) = (
                alter("DISABLE ROW LEVEL SECURITY"),
                "hides rows that the other side shows: it is there only",
            );
            self.find(pair, Kind::RowSecurity, "row-level security".into(), what, remedy);
        }
        // An index is marked with the index.
        let identity = [('d', "DEFAULT"), ('f', "FULL"), ('n', "NOTHING")];
        let wanted = identity.iter().find(|(is, _)| *is == from.replica_identity);
        if let Some((_, word)) = wanted.filter(|(is, _)| to.map_or('d', |to| to.replica_identity) != *is) {
            let remedy = alter(&format!("REPLICA IDENTITY {word}"));
            self.find(pair, Kind::ReplicaIdentity, "the replica identity".into(), "is not the same", remedy);
        }
        if to.is_none_or(|to| to.owner != from.owner) {
            let remedy = alter(&format!("OWNER TO {}", quote_ident(&from.owner)));
            self.find(pair, Kind::Owner, "the owner".into(), &format!("is not {}", from.owner), remedy);
        }
        self.comment(
            pair,
            &format!("TABLE {table}"),
            from.comment.as_ref(),
            to.and_then(|to| to.comment.as_ref()),
        );
    }

    fn columns(&mut self, pair: &Pair<'_>) {
        let (from, to) = (self.from, self.to);
        let all = of(&to.columns, pair.to.map(|to| to.oid));
        for ours in of(&from.columns, Some(pair.from.oid)) {
            let theirs = all.iter().find(|theirs| theirs.name == ours.name);
            let column = quote_ident(&ours.name);
            let object = format!("the column {}", ours.name);
            let on = format!("COLUMN {}.{column}", pair.shown);
            self.comment(pair, &on, ours.comment.as_ref(), theirs.and_then(|theirs| theirs.comment.as_ref()));
            self.generated(pair, ours, theirs);
            // One that is not there at all stands in the way of the plan, or comes with its table.
            let Some(theirs) = theirs else { continue };
            let alter = |what: &str| vec![format!("ALTER TABLE {} ALTER COLUMN {column} {what}", pair.shown)];
            if ours.not_null && !theirs.not_null {
                self.find(pair, Kind::Constraint, object.clone(), "takes NULL", alter("SET NOT NULL"));
            }
            // Where values come from a sequence it is the sequences' own gate that asks.
            let is_sequence =
                |default: &Option<String>| default.as_ref().is_some_and(|d| d.starts_with("nextval("));
            if ours.default != theirs.default && !is_sequence(&ours.default) && !is_sequence(&theirs.default)
            {
                let (what, remedy) = match &ours.default {
                    Some(default) => {
                        (format!("has not the default {default}"), format!("SET DEFAULT {default}"))
                    }
                    None => ("has a default".to_owned(), "DROP DEFAULT".to_owned()),
                };
                self.find(pair, Kind::Default, object, &what, alter(&remedy));
            }
        }
    }

    /// Generated columns do not travel: each side computes its own, and should compute the same. That one side computes what
    /// the other stores stands in the way of the plan.
    fn generated(&mut self, pair: &Pair<'_>, ours: &ColumnFacts, theirs: Option<&ColumnFacts>) {
        let (Some(here), Some(_)) = (&ours.generated, pair.to) else { return };
        let (table, column, expression) = (&pair.shown, quote_ident(&ours.name), &here.expression);
        let is_part = pair.from.level > 0;
        let told = (pair.from.root, ours.name.clone());
        let stored = if here.is_virtual && self.to.version >= 180_000 { "VIRTUAL" } else { "STORED" };
        let add = format!(
            "ALTER TABLE {table} ADD COLUMN {column} {} GENERATED ALWAYS AS ({expression}) {stored}",
            here.sql_type
        );
        let (what, remedy) = match theirs.map(|theirs| theirs.generated.as_ref()) {
            // Its root lacks it, too.
            None if is_part => return,
            None => ("missing".to_owned(), vec![add]),
            Some(None) => return,
            Some(Some(there)) if there.expression == *expression => return,
            Some(Some(_)) if is_part && self.computed_otherwise.contains(&told) => return,
            Some(Some(there)) => {
                let remedy = if self.to.version >= 170_000 {
                    vec![format!(
                        "ALTER TABLE {table} ALTER COLUMN {column} SET EXPRESSION AS ({expression})"
                    )]
                } else if is_part {
                    vec![format!("-- {table} has to be made anew: it cannot be changed before PostgreSQL 17")]
                } else {
                    vec![format!("ALTER TABLE {table} DROP COLUMN {column}"), add]
                };
                (format!("as {}", there.expression), remedy)
            }
        };
        if !is_part {
            self.computed_otherwise.insert(told);
        }
        let what = format!("is computed as {expression} on the other side, and {what}");
        self.find(pair, Kind::Generated, format!("the column {}", ours.name), &what, remedy);
    }

    /// Whether a column has one at all is the sequences' own gate.
    fn sequences(&mut self, pair: &Pair<'_>) {
        let (from, to) = (self.from, self.to);
        for ours in of(&from.sequences, Some(pair.from.oid)) {
            let Some(theirs) = counterpart(pair, ours, &to.sequences) else { continue };
            if ours.definition != theirs.definition {
                let remedy = vec![format!("ALTER SEQUENCE {} {}", theirs.name.sql(), ours.definition)];
                let object = format!("the sequence of {}", ours.column);
                self.find(pair, Kind::Sequence, object, "counts otherwise", remedy);
            }
            let on = format!("SEQUENCE {}", theirs.name.sql());
            self.comment(pair, &on, ours.comment.as_ref(), theirs.comment.as_ref());
        }
    }

    fn triggers(&mut self, pair: &Pair<'_>) {
        let (from, to, table) = (self.from, self.to, pair.shown.as_str());
        let made = |trigger: &Attached| {
            trigger.definition.replacen(&format!(" ON {} ", pair.from.shown), &format!(" ON {table} "), 1)
        };
        let turn = |trigger: &Attached| {
            let verb = if trigger.enabled { "ENABLE" } else { "DISABLE" };
            format!("ALTER TABLE {table} {verb} TRIGGER {}", quote_ident(&trigger.name))
        };
        let form = Form {
            kind: Kind::Trigger,
            word: "TRIGGER",
            // One that acts on replicated rows, too, would act on Segue's.
            make: &|trigger| {
                let turned = (!trigger.enabled).then(|| turn(trigger));
                std::iter::once(made(trigger)).chain(turned).collect()
            },
            same: &|ours, theirs| made(ours) == theirs.definition,
            named: &|trigger| format!("{} ON {table}", quote_ident(&trigger.name)),
        };
        let both = self.attached(pair, &form, &from.triggers, &to.triggers);
        for (ours, theirs) in both {
            if ours.enabled != theirs.enabled {
                let what =
                    if theirs.enabled { "acts: it does not on the other side, but" } else { "does not act" };
                let object = format!("trigger {}", ours.name);
                self.find(pair, Kind::Trigger, object, what, vec![turn(ours)]);
            }
        }
    }

    fn rules(&mut self, pair: &Pair<'_>) {
        let (from, to, table) = (self.from, self.to, pair.shown.as_str());
        let made = |rule: &Attached| {
            rule.definition.replacen(&format!(" TO {}", pair.from.shown), &format!(" TO {table}"), 1)
        };
        let form = Form {
            kind: Kind::Rule,
            word: "RULE",
            make: &|rule| {
                let off = format!("ALTER TABLE {table} DISABLE RULE {}", quote_ident(&rule.name));
                std::iter::once(made(rule)).chain((!rule.enabled).then_some(off)).collect()
            },
            same: &|ours, theirs| made(ours) == theirs.definition && ours.enabled == theirs.enabled,
            named: &|rule| format!("{} ON {table}", quote_ident(&rule.name)),
        };
        self.attached(pair, &form, &from.rules, &to.rules);
    }

    fn policies(&mut self, pair: &Pair<'_>) {
        let (from, to, table) = (self.from, self.to, pair.shown.as_str());
        let form = Form {
            kind: Kind::Policy,
            word: "POLICY",
            make: &|policy| {
                vec![format!("CREATE POLICY {} ON {table}{}", quote_ident(&policy.name), policy.definition)]
            },
            same: &|ours, theirs| ours.definition == theirs.definition,
            named: &|policy| format!("{} ON {table}", quote_ident(&policy.name)),
        };
        self.attached(pair, &form, &from.policies, &to.policies);
    }

    fn statistics(&mut self, pair: &Pair<'_>) {
        let (from, to) = (self.from, self.to);
        let made = |statistics: &Attached| {
            let (from, to) = (format!(" FROM {}", pair.from.shown), format!(" FROM {}", pair.shown));
            match statistics.definition.split_once('\n') {
                Some((definition, target)) => {
                    let target = format!("ALTER STATISTICS {} SET STATISTICS {target}", statistics.name);
                    vec![definition.replacen(&from, &to, 1), target]
                }
                None => vec![statistics.definition.replacen(&from, &to, 1)],
            }
        };
        let form = Form {
            kind: Kind::Statistics,
            word: "STATISTICS",
            make: &made,
            same: &|ours, theirs| {
                let theirs =
                    theirs.definition.split_once('\n').map_or(theirs.definition.as_str(), |(d, _)| d);
                made(ours).first().is_some_and(|ours| ours == theirs)
            },
            // With its schema, and quoted already.
            named: &|statistics| statistics.name.clone(),
        };
        self.attached(pair, &form, &from.statistics, &to.statistics);
    }

    /// Compares by name, and returns those that are the same on both sides.
    fn attached<'x>(
        &mut self,
        pair: &Pair<'_>,
        form: &Form<'_>,
        from: &'x [Attached],
        to: &'x [Attached],
    ) -> Vec<(&'x Attached, &'x Attached)> {
        let object = |one: &Attached| format!("{} {}", form.word.to_lowercase(), one.name);
        let drop = |one: &Attached| format!("DROP {} {}", form.word, (form.named)(one));
        let (all, theirs) = (of(from, Some(pair.from.oid)), of(to, pair.to.map(|to| to.oid)));
        let mut both = Vec::new();
        for ours in all {
            let found = theirs.iter().find(|one| one.name == ours.name);
            let on = format!("{} {}", form.word, (form.named)(ours));
            self.comment(pair, &on, ours.comment.as_ref(), found.and_then(|found| found.comment.as_ref()));
            match found {
                Some(found) if (form.same)(ours, found) => both.push((ours, found)),
                Some(found) => {
                    let remedy = std::iter::once(drop(found)).chain((form.make)(ours)).collect();
                    self.find(pair, form.kind, object(ours), "is another one", remedy);
                }
                None => self.find(pair, form.kind, object(ours), "is missing", (form.make)(ours)),
            }
        }
        // Statistics hurt nobody; the rest does something there that does not happen here.
        for extra in theirs.iter().filter(|one| form.kind != Kind::Statistics && one.enabled) {
            if !all.iter().any(|ours| ours.name == extra.name) {
                let what = "acts: it is not on the other side, but";
                self.find(pair, form.kind, object(extra), what, vec![drop(extra)]);
            }
        }
        both
    }

    /// What roles may do. Grants that only the other side has are left alone.
    pub(super) fn privileges(&mut self) {
        let there: BTreeSet<(String, bool)> = self.there();
        let mut wanted: BTreeMap<(String, String, bool), (usize, Vec<String>)> = BTreeMap::new();
        let targets = self.grant_targets();
        for grant in &self.from.grants {
            let Some((root, on, owner)) = targets.get(&(grant.kind, grant.oid)) else { continue };
            if grant.grantee.is_some() && grant.grantee.as_ref() == owner.as_ref() {
                continue;
            }
            let (privilege, to) = (privilege(grant), grantee(grant));
            let said = format!("{privilege} ON {on} TO {to}");
            if there.contains(&(said.clone(), true)) || (!grant.grantable && there.contains(&(said, false))) {
                continue;
            }
            let entry = wanted.entry((on.clone(), to, grant.grantable)).or_insert((*root, Vec::new()));
            entry.1.push(privilege);
        }
        let roots = self.pairs.values().filter(|pair| pair.from.level == 0);
        let roots: HashMap<usize, QualifiedName> =
            roots.map(|pair| (pair.from.root, pair.name.clone())).collect();
        for ((on, to, grantable), (root, privileges)) in wanted {
            let Some(table) = roots.get(&root).cloned() else { continue };
            let (privileges, option) =
                (privileges.join(", "), if grantable { " WITH GRANT OPTION" } else { "" });
            let finding = Finding {
                kind: Kind::Privilege,
                side: self.side,
                table,
                object: format!("the role {to}"),
                what: format!("lacks {privileges} on {on}"),
                remedy: vec![format!("GRANT {privileges} ON {on} TO {to}{option}")],
            };
            self.found.push((finding, 0));
        }
    }

    /// What is granted on the other side, in words, and whether it may be passed on.
    fn there(&self) -> BTreeSet<(String, bool)> {
        let mut names: HashMap<(&str, u32), String> = HashMap::new();
        let Comparison { to, .. } = self;
        names.extend(to.relations.iter().map(|r| (("TABLE", r.oid), format!("TABLE {}", r.name.sql()))));
        names
            .extend(to.sequences.iter().map(|s| (("SEQUENCE", s.oid), format!("SEQUENCE {}", s.name.sql()))));
        names.extend(
            to.schemas.iter().map(|s| (("SCHEMA", s.oid), format!("SCHEMA {}", quote_ident(&s.name)))),
        );
        let said = |grant: &Grant| {
            let on = names.get(&(grant.kind, grant.oid))?;
            Some((format!("{} ON {on} TO {}", privilege(grant), grantee(grant)), grant.grantable))
        };
        to.grants.iter().filter_map(said).collect()
    }

    /// Where each grant of ours belongs there: the root's place, the object in words, and the owner, who needs none.
    fn grant_targets(&self) -> HashMap<(&'static str, u32), (usize, String, Option<String>)> {
        let mut targets = HashMap::new();
        for (oid, pair) in &self.pairs {
            let root = pair.from.root;
            let owner = pair.to.map(|to| to.owner.clone());
            targets.insert(("TABLE", *oid), (root, format!("TABLE {}", pair.name.sql()), owner.clone()));
            for ours in of(&self.from.sequences, Some(*oid)) {
                let name =
                    counterpart(pair, ours, &self.to.sequences).map_or(&ours.name, |theirs| &theirs.name);
                let on = format!("SEQUENCE {}", name.sql());
                targets.insert(("SEQUENCE", ours.oid), (root, on, owner.clone()));
            }
            let schema = self.from.schemas.iter().find(|schema| schema.name == pair.from.name.schema);
            if let Some(schema) = schema {
                let on = format!("SCHEMA {}", quote_ident(&pair.name.schema));
                let theirs = self.to.schemas.iter().find(|schema| schema.name == pair.name.schema);
                let owner = theirs.map(|schema| schema.owner.clone());
                targets.entry(("SCHEMA", schema.oid)).or_insert((root, on, owner));
            }
        }
        targets
    }
}

/// The sequence of the same column. Of several, the one that its identity has, or the one of the same name.
fn counterpart<'a>(
    pair: &Pair<'_>,
    ours: &SequenceFacts,
    all: &'a [SequenceFacts],
) -> Option<&'a SequenceFacts> {
    let theirs = of(all, pair.to.map(|to| to.oid));
    let of_column = theirs.iter().filter(|sequence| sequence.column == ours.column);
    of_column.min_by_key(|s| (s.identity != ours.identity, s.name.name != ours.name.name))
}

fn privilege(grant: &Grant) -> String {
    match &grant.column {
        Some(column) => format!("{} ({})", grant.privilege, quote_ident(column)),
        None => grant.privilege.clone(),
    }
}

fn grantee(grant: &Grant) -> String {
    grant.grantee.as_ref().map_or_else(|| "PUBLIC".to_owned(), |role| quote_ident(role))
}
