//! The comparison as statements.

use super::super::facts::{Attached, Carried, ColumnFacts, ConstraintFacts, Generated, IndexFacts};
use super::*;

const MANNER: Manner = Manner { side: "target", beside_writers: true };

fn relation(oid: u32, name: &str, kind: char, level: i32) -> Relation {
    Relation {
        oid,
        name: QualifiedName::new("public", name),
        shown: format!("public.{name}"),
        kind,
        root: 0,
        level,
        replica_identity: 'd',
        row_security: (false, false),
        owner: "ann".into(),
        comment: None,
    }
}

/// A table `t`, or one with a partition `p`.
fn table() -> Facts {
    Facts { relations: vec![relation(1, "t", 'r', 0)], ..Facts::default() }
}

fn partitioned() -> Facts {
    Facts { relations: vec![relation(1, "t", 'p', 0), relation(2, "p", 'r', 1)], ..Facts::default() }
}

fn index(oid: u32, table: u32, name: &str) -> IndexFacts {
    IndexFacts {
        oid,
        table,
        name: name.into(),
        kind: 'i',
        definition: " USING btree (v)".into(),
        unique: false,
        valid: true,
        replica_identity: false,
        clustered: false,
        may_identify: false,
        columns: 1,
        constraint: None,
        parent: None,
        comment: None,
    }
}

fn unique(deferrable: bool) -> IndexFacts {
    let definition = if deferrable { "UNIQUE (v) DEFERRABLE" } else { "UNIQUE (v)" };
    let carried =
        Carried { name: "u".into(), kind: 'u', definition: definition.into(), deferrable, comment: None };
    IndexFacts { unique: true, constraint: Some(carried), ..index(10, 1, "u") }
}

fn table_t() -> QualifiedName {
    QualifiedName::new("public", "t")
}

fn remedies(from: &Facts, to: &Facts) -> Vec<String> {
    compare(from, to, &[(table_t(), table_t())], MANNER)
        .into_iter()
        .flat_map(|finding| finding.remedy)
        .collect()
}

#[test]
fn what_is_the_same_is_not_found_whatever_it_is_called() {
    let from = Facts { indexes: vec![index(10, 1, "a")], ..table() };
    let to = Facts { indexes: vec![index(77, 1, "b")], ..table() };
    assert_eq!(remedies(&from, &to), [""; 0]);
    assert_eq!(remedies(&to, &table()), [r#"CREATE INDEX CONCURRENTLY "b" ON public.t USING btree (v)"#]);
}

#[test]
fn an_index_that_was_cut_short_is_dropped_and_built_again() {
    let from = Facts { indexes: vec![index(10, 1, "a")], ..table() };
    let to = Facts { indexes: vec![IndexFacts { valid: false, ..index(77, 1, "a") }], ..table() };
    let expected = [
        r#"DROP INDEX CONCURRENTLY "public"."a""#,
        r#"CREATE INDEX CONCURRENTLY "a" ON public.t USING btree (v)"#,
    ];
    assert_eq!(remedies(&from, &to), expected);
}

#[test]
fn an_index_that_was_cut_short_is_asked_of_nobody() {
    let dud = IndexFacts { unique: true, valid: false, ..index(10, 1, "a") };
    let from = Facts { indexes: vec![dud], ..table() };
    assert_eq!(remedies(&from, &table()), [""; 0]);
    // Where it holds it refuses what the other side takes.
    let there = IndexFacts { unique: true, ..index(77, 1, "a") };
    let to = Facts { indexes: vec![there], ..table() };
    assert_eq!(remedies(&from, &to), [r#"DROP INDEX CONCURRENTLY "public"."a""#]);
}

#[test]
fn a_unique_constraint_is_built_beside_writers_and_goes_on_where_it_was_left() {
    let from = Facts { indexes: vec![unique(false)], ..table() };
    let build = r#"CREATE UNIQUE INDEX CONCURRENTLY "u" ON public.t USING btree (v)"#;
    let adopt = r#"ALTER TABLE ONLY public.t ADD CONSTRAINT "u" UNIQUE USING INDEX "u""#;
    assert_eq!(remedies(&from, &table()), [build, adopt]);
    let begun = |valid| IndexFacts { unique: true, valid, ..index(77, 1, "u") };
    let to = |valid| Facts { indexes: vec![begun(valid)], ..table() };
    assert_eq!(remedies(&from, &to(true)), [adopt]);
    assert_eq!(remedies(&from, &to(false)), [r#"DROP INDEX CONCURRENTLY "public"."u""#, build, adopt]);
    // As an index alone it would refuse what the constraint allows within a transaction.
    let deferrable = Facts { indexes: vec![unique(true)], ..table() };
    let expected = [r#"ALTER TABLE ONLY public.t ADD CONSTRAINT "u" UNIQUE (v) DEFERRABLE"#];
    assert_eq!(remedies(&deferrable, &table()), expected);
}

#[test]
fn what_only_the_other_side_refuses_is_found() {
    let to = Facts { indexes: vec![unique(false), index(11, 1, "faster")], ..table() };
    assert_eq!(remedies(&table(), &to), [r#"ALTER TABLE public.t DROP CONSTRAINT "u""#]);
}

#[test]
fn an_index_of_a_partitioned_table_is_made_from_its_parts() {
    let part = IndexFacts { parent: Some(10), ..index(20, 2, "of_p") };
    let whole = IndexFacts { kind: 'I', ..index(10, 1, "of_t") };
    let from = Facts { indexes: vec![whole, part], ..partitioned() };
    let expected = [
        r#"CREATE INDEX CONCURRENTLY "of_p" ON public.p USING btree (v)"#,
        r#"CREATE INDEX "of_t" ON ONLY public.t USING btree (v)"#,
        r#"ALTER INDEX "public"."of_t" ATTACH PARTITION "public"."of_p""#,
    ];
    assert_eq!(remedies(&from, &partitioned()), expected);
    // A target that is cut otherwise gets the index of the whole.
    let other =
        Facts { relations: vec![relation(1, "t", 'p', 0), relation(3, "q", 'r', 1)], ..Facts::default() };
    assert_eq!(remedies(&from, &other), [r#"CREATE INDEX "of_t" ON public.t USING btree (v)"#]);
}

fn foreign_key(table: u32, valid: bool) -> ConstraintFacts {
    ConstraintFacts {
        table,
        name: "fk".into(),
        kind: 'f',
        definition: "FOREIGN KEY (v) REFERENCES public.t(id)".into(),
        valid,
        refers_to: Some((1, "public.t".into())),
        inherited: false,
        comment: None,
    }
}

#[test]
fn a_foreign_key_is_added_first_and_validated_then() {
    let from = Facts { constraints: vec![foreign_key(1, true)], ..table() };
    let add =
        r#"ALTER TABLE ONLY public.t ADD CONSTRAINT "fk" FOREIGN KEY (v) REFERENCES public.t(id) NOT VALID"#;
    let validate = r#"ALTER TABLE public.t VALIDATE CONSTRAINT "fk""#;
    assert_eq!(remedies(&from, &table()), [add, validate]);
    let to = Facts { constraints: vec![foreign_key(1, false)], ..table() };
    assert_eq!(remedies(&from, &to), [validate]);
    // One that the source has not validated need not hold here, and one that holds does no harm.
    assert_eq!(remedies(&to, &table()), [add]);
    assert_eq!(remedies(&to, &from), [""; 0]);
}

#[test]
fn a_foreign_key_of_a_partitioned_table_comes_after_those_of_its_parts() {
    let part = ConstraintFacts { inherited: true, ..foreign_key(2, true) };
    let from = Facts { constraints: vec![foreign_key(1, true), part], ..partitioned() };
    let expected = [
        r#"ALTER TABLE ONLY public.p ADD CONSTRAINT "fk" FOREIGN KEY (v) REFERENCES public.t(id) NOT VALID"#,
        r#"ALTER TABLE public.p VALIDATE CONSTRAINT "fk""#,
        r#"ALTER TABLE public.t ADD CONSTRAINT "fk" FOREIGN KEY (v) REFERENCES public.t(id)"#,
    ];
    assert_eq!(remedies(&from, &partitioned()), expected);
}

#[test]
fn a_trigger_acts_where_it_acts_on_the_other_side() {
    let trigger = |enabled| Attached {
        table: 1,
        name: "g".into(),
        definition: "CREATE TRIGGER g AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f()"
            .into(),
        enabled,
        always: false,
        comment: None,
    };
    let with = |enabled| Facts { triggers: vec![trigger(enabled)], ..table() };
    let off = r#"ALTER TABLE public.t DISABLE TRIGGER "g""#;
    assert_eq!(remedies(&with(false), &table()), [trigger(false).definition.as_str(), off]);
    assert_eq!(remedies(&with(false), &with(true)), [off]);
    assert_eq!(remedies(&table(), &with(true)), [r#"DROP TRIGGER "g" ON public.t"#]);
    assert_eq!(remedies(&table(), &with(false)), [""; 0], "what does not act does no harm");
}

#[test]
fn tables_that_are_called_otherwise_are_mended_under_their_own_name() {
    let from =
        Facts { constraints: vec![foreign_key(1, false)], indexes: vec![index(10, 1, "a")], ..table() };
    let mut there = relation(5, "u", 'r', 0);
    there.owner = "bob".into();
    let to = Facts { relations: vec![there], ..Facts::default() };
    let names = [(QualifiedName::new("public", "t"), QualifiedName::new("public", "u"))];
    let found: Vec<String> = compare(&from, &to, &names, MANNER).into_iter().flat_map(|f| f.remedy).collect();
    let expected = [
        r#"CREATE INDEX CONCURRENTLY "a" ON public.u USING btree (v)"#,
        r#"ALTER TABLE ONLY public.u ADD CONSTRAINT "fk" FOREIGN KEY (v) REFERENCES public.u(id) NOT VALID"#,
        r#"ALTER TABLE public.u OWNER TO "ann""#,
    ];
    assert_eq!(found, expected);
}

fn computed(table: u32, expression: &str) -> ColumnFacts {
    let generated =
        Generated { sql_type: "integer".into(), expression: expression.into(), is_virtual: false };
    ColumnFacts {
        table,
        name: "twice".into(),
        not_null: false,
        default: None,
        generated: Some(generated),
        comment: None,
    }
}

#[test]
fn what_is_computed_otherwise_or_not_at_all_is_found() {
    let with = |version, expression| Facts { version, columns: vec![computed(1, expression)], ..table() };
    let from = with(150_000, "(v * 2)");
    assert_eq!(remedies(&from, &with(150_000, "(v * 2)")), [""; 0]);
    let add = r#"ALTER TABLE public.t ADD COLUMN "twice" integer GENERATED ALWAYS AS ((v * 2)) STORED"#;
    let drop = r#"ALTER TABLE public.t DROP COLUMN "twice""#;
    assert_eq!(remedies(&from, &with(150_000, "(v * 3)")), [drop, add]);
    let alter = r#"ALTER TABLE public.t ALTER COLUMN "twice" SET EXPRESSION AS ((v * 2))"#;
    assert_eq!(remedies(&from, &with(170_000, "(v * 3)")), [alter]);
    assert_eq!(remedies(&from, &table()), [add]);
    let plain = Facts { columns: vec![ColumnFacts { generated: None, ..computed(1, "") }], ..table() };
    assert_eq!(remedies(&from, &plain), [""; 0], "that is the plan's matter");
    let named = compare(&from, &with(170_000, "(v * 3)"), &[(table_t(), table_t())], MANNER);
    assert_eq!(
        named[0].words(),
        "public.t: the column twice is computed as (v * 2) on the other side, and as (v * 3) on the target"
    );
}

#[test]
fn what_a_root_computes_otherwise_is_said_once_and_what_a_part_does_of_the_part() {
    let with = |root, part| Facts {
        version: 170_000,
        columns: vec![computed(1, root), computed(2, part)],
        ..partitioned()
    };
    let alter =
        |table| format!("ALTER TABLE public.{table} ALTER COLUMN \"twice\" SET EXPRESSION AS ((v * 2))");
    let from = with("(v * 2)", "(v * 2)");
    assert_eq!(remedies(&from, &with("(v * 3)", "(v * 3)")), [alter("t")]);
    assert_eq!(remedies(&from, &with("(v * 2)", "(v * 3)")), [alter("p")]);
}
