//! Checks and foreign keys.
//!
//! A constraint is first added without looking at the rows that are there, which locks the table for a moment only, and
//! then validated beside writers. A foreign key of a partitioned table cannot be added so: it is made from those of its
//! partitions, which come first.

use super::super::facts::{ConstraintFacts, of};
use super::{Comparison, Kind, Pair};
use segue_model::sqltext::quote_ident;

fn kind(constraint: &ConstraintFacts) -> Kind {
    if constraint.kind == 'f' { Kind::ForeignKey } else { Kind::Constraint }
}

fn object(constraint: &ConstraintFacts) -> String {
    let what = if constraint.kind == 'f' { "foreign key" } else { "check" };
    format!("{what} {}", constraint.name)
}

impl Comparison<'_> {
    pub(super) fn constraints(&mut self, pair: &Pair<'_>) {
        let (from, to) = (self.from, self.to);
        let theirs = of(&to.constraints, pair.to.map(|to| to.oid));
        let mut used: Vec<&str> = Vec::new();
        // A check of a partition that comes from the partitioned table is made with it.
        let ours = of(&from.constraints, Some(pair.from.oid));
        for constraint in ours.iter().filter(|c| c.kind == 'f' || !c.inherited) {
            let wanted = self.definition(pair, constraint);
            let alike = theirs.iter().filter(|c| {
                c.kind == constraint.kind && c.definition == wanted && !used.contains(&c.name.as_str())
            });
            if let Some(found) = alike.min_by_key(|c| c.name != constraint.name) {
                used.push(&found.name);
                self.both_constraints(pair, constraint, found);
                continue;
            }
            let mut remedy = Vec::new();
            let mut what = "is missing";
            if let Some(other) = theirs.iter().find(|c| c.name == constraint.name) {
                used.push(&other.name);
                what = "is another one";
                remedy.push(drop_of(pair, other));
            }
            remedy.extend(add(pair, constraint, &wanted));
            self.find(pair, kind(constraint), object(constraint), what, remedy);
            let on = format!("CONSTRAINT {} ON {}", quote_ident(&constraint.name), pair.shown);
            self.comment(pair, &on, constraint.comment.as_ref(), None);
        }
        for extra in theirs.iter().filter(|c| !c.inherited && !used.contains(&c.name.as_str())) {
            let what = "refuses rows that the other side takes: it is there only";
            self.find(pair, kind(extra), object(extra), what, vec![drop_of(pair, extra)]);
        }
    }

    fn both_constraints(&mut self, pair: &Pair<'_>, ours: &ConstraintFacts, theirs: &ConstraintFacts) {
        let name = quote_ident(&theirs.name);
        if ours.valid && !theirs.valid {
            let remedy = vec![format!("ALTER TABLE {} VALIDATE CONSTRAINT {name}", pair.shown)];
            self.find(pair, kind(ours), object(theirs), "is not validated", remedy);
        }
        let on = format!("CONSTRAINT {name} ON {}", pair.shown);
        self.comment(pair, &on, ours.comment.as_ref(), theirs.comment.as_ref());
    }

    /// The definition, with the other side's name of the table that it refers to.
    fn definition(&self, pair: &Pair<'_>, constraint: &ConstraintFacts) -> String {
        let Some((oid, name)) = &constraint.refers_to else { return constraint.definition.clone() };
        // The pair at hand is not among the others while it is compared.
        let other = if *oid == pair.from.oid { Some(pair) } else { self.pairs.get(oid) };
        match other {
            Some(other) => constraint.definition.replacen(
                &format!(" REFERENCES {name}("),
                &format!(" REFERENCES {}(", other.shown),
                1,
            ),
            None => constraint.definition.clone(),
        }
    }
}

fn add(pair: &Pair<'_>, constraint: &ConstraintFacts, definition: &str) -> Vec<String> {
    let (table, name) = (&pair.shown, quote_ident(&constraint.name));
    if constraint.kind == 'f' && pair.kind == 'p' {
        return vec![format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")];
    }
    // A check of a partitioned table is one of all its partitions.
    let only = if pair.kind == 'p' { "" } else { "ONLY " };
    let mut statements =
        vec![format!("ALTER TABLE {only}{table} ADD CONSTRAINT {name} {definition} NOT VALID")];
    if constraint.valid {
        statements.push(format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name}"));
    }
    statements
}

fn drop_of(pair: &Pair<'_>, constraint: &ConstraintFacts) -> String {
    format!("ALTER TABLE {} DROP CONSTRAINT {}", pair.shown, quote_ident(&constraint.name))
}
