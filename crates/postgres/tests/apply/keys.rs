//! Rows whose keys change: they stay the rows that they are.

use super::*;

/// A table as it is planned when the source does not have these columns, which are the last ones.
async fn without(target: &Target, name: &str, own: &[&str]) -> Table {
    let mut table = target.table(name).await;
    table.columns.retain(|column| !own.contains(&column.target.as_str()));
    table
}

async fn net_of(target: &mut Target, table: &Table, actions: Vec<Action>) {
    let net = collapse(table, &changes(actions)).unwrap().expect("it can be collapsed");
    target.net(table, net).await.unwrap();
}

#[tokio::test]
async fn a_row_keeps_what_only_the_target_has_when_its_key_changes() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, a text, b text, mark text DEFAULT 'new', no int GENERATED ALWAYS AS IDENTITY)";
    let mut target = Target::start(Options::default(), ddl).await;
    let t = without(&target, "t", &["mark", "no"]).await;
    let all = (1..=12).map(|id| ins(&format!("{id} a{id} b{id}"))).collect();
    net_of(&mut target, &t, all).await;
    target.client.batch_execute("UPDATE t SET mark = 'mark ' || id, no = DEFAULT").await.unwrap();
    let numbers =
        "SELECT string_agg(no::text, ' ' ORDER BY split_part(mark, ' ', 2)::int) FROM t WHERE mark <> 'new'";
    let numbers_before = target.cluster.scalar(numbers).await.unwrap();
    // Many at once, some of which did not carry a large value, and one whose old key another row takes.
    let mut actions: Vec<Action> =
        (1..=8).map(|id| moved(&format!("{id} - -"), &format!("{} ~ moved", 100 + id))).collect();
    actions.extend([upd("101 again ~"), ins("1 later row"), moved("9 - -", "99 x y"), del("10 - -")]);
    actions.push(moved("99 - -", "10 x z"));
    net_of(&mut target, &t, actions).await;
    let shown = "SELECT string_agg(concat_ws(',', id, a, b, mark), ' ' ORDER BY id) FROM t";
    let shown_now = target.cluster.scalar(shown).await.unwrap();
    assert_eq!(
        shown_now,
        "1,later,row,new 10,x,z,mark 9 11,a11,b11,mark 11 12,a12,b12,mark 12 101,again,moved,mark 1 \
         102,a2,moved,mark 2 103,a3,moved,mark 3 104,a4,moved,mark 4 105,a5,moved,mark 5 106,a6,moved,mark 6 \
         107,a7,moved,mark 7 108,a8,moved,mark 8"
    );
    // Two that take each other's places, and one that follows.
    let rotation = vec![
        moved("11 - -", "0 ~ ~"),
        moved("12 - -", "11 ~ ~"),
        moved("0 - -", "12 ~ ~"),
        moved("10 - -", "13 ~ ~"),
    ];
    assert_eq!(collapse(&t, &changes(rotation.clone())), Ok(None), "only in order");
    target.in_order(&t, rotation).await.unwrap();
    let rotated =
        "SELECT string_agg(concat_ws(',', id, a, mark), ' ' ORDER BY id) FROM t WHERE id BETWEEN 10 AND 20";
    assert_eq!(target.cluster.scalar(rotated).await.unwrap(), "11,a12,mark 12 12,a11,mark 11 13,x,mark 9");
    let numbers_after = target.cluster.scalar(numbers).await.unwrap();
    let left: Vec<&str> =
        numbers_before.split(' ').enumerate().filter(|(n, _)| *n != 9).map(|(_, no)| no).collect();
    assert_eq!(numbers_after, left.join(" "), "all but that of row 10, which is gone");
}

#[tokio::test]
async fn a_row_that_is_put_back_keeps_what_only_the_target_has() {
    let ddl = "CREATE TABLE k (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, mark text DEFAULT 'new');
        CREATE TABLE f (id int PRIMARY KEY, no int GENERATED ALWAYS AS IDENTITY, a text, \"K\" text DEFAULT 'new', own int DEFAULT 5);
        CREATE TABLE w (no int GENERATED ALWAYS AS IDENTITY, a text, mark text DEFAULT 'new')";
    let mut target = Target::start(Options::default(), ddl).await;
    let k = without(&target, "k", &["mark"]).await;
    let f = without(&target, "f", &["K", "own"]).await;
    let w = without(&target, "w", &["mark"]).await;
    target.in_order(&k, vec![ins("1 x"), ins("2 y")]).await.unwrap();
    target.in_order(&f, vec![ins("1 7 x")]).await.unwrap();
    target.in_order(&w, vec![ins("1 x"), ins("2 y")]).await.unwrap();
    target
        .client
        .batch_execute(
            "UPDATE k SET mark = 'kept'; UPDATE f SET \"K\" = 'kept', own = 6; UPDATE w SET mark = 'kept'",
        )
        .await
        .unwrap();
    target.in_order(&k, vec![moved("1 -", "30 ~"), upd("2 z")]).await.unwrap();
    assert_eq!(target.rows("k").await, "(2,z,kept) (30,x,kept)");
    // What may have changed and cannot be set, set-wise and in order.
    net_of(&mut target, &f, vec![upd("1 8 y")]).await;
    assert_eq!(target.rows("f").await, "(1,8,y,kept,6)");
    target.in_order(&f, vec![moved("1 - -", "3 9 z")]).await.unwrap();
    assert_eq!(target.rows("f").await, "(3,9,z,kept,6)");
    let whole = |old: &str, new: &str| Action::Update { old: Some(row(old)), new: row(new) };
    target.in_order(&w, vec![whole("1 x", "5 x"), whole("2 y", "2 z")]).await.unwrap();
    assert_eq!(target.rows("w").await, "(2,z,kept) (5,x,kept)");
    mismatch(target.in_order(&w, vec![whole("1 x", "6 x")]).await);
}

#[tokio::test]
async fn a_deferrable_key_takes_another_text_of_the_same_value_and_no_duplicate() {
    let ddl = "CREATE EXTENSION citext SCHEMA public;
        CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE n (id numeric PRIMARY KEY DEFERRABLE, a text); CREATE TABLE f (id float8 PRIMARY KEY DEFERRABLE, a text);
        CREATE TABLE c (id citext PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, a text);
        CREATE TABLE l (id text COLLATE loose, sub numeric, a text, PRIMARY KEY (id, sub) DEFERRABLE)";
    let mut target = Target::start(Options::default(), ddl).await;
    for (name, [key, same, other]) in [
        ("n", ["1.0", "1.00", "2.0"]),
        ("f", ["0", "-0", "2"]),
        ("c", ["key", "KEY", "other"]),
        ("l", ["key 1.0", "KEY 1.00", "key 2"]),
    ] {
        let table = target.table(name).await;
        assert!(table.key().unwrap().target_deferrable, "{name}");
        let old = |key: &str| format!("{key} -");
        target
            .in_order(&table, vec![ins(&format!("{key} x")), moved(&old(key), &format!("{same} y"))])
            .await
            .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let now = format!("({},y)", same.replace(' ', ","));
        assert_eq!(target.rows(name).await, now);
        // Another row is still told from the row itself.
        target.in_order(&table, vec![ins(&format!("{other} x"))]).await.unwrap();
        mismatch(target.in_order(&table, vec![moved(&old(other), &format!("{key} z"))]).await);
        target.applier.rollback().await.unwrap();
        assert_eq!(target.cluster.scalar(&format!("SELECT count(*) FROM {name}")).await.unwrap(), "2");
    }
}

#[tokio::test]
async fn a_deferrable_key_is_tested_where_many_rows_change_theirs() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, a text)";
    let mut target = Target::start(Options::default(), ddl).await;
    let t = target.table("t").await;
    net_of(&mut target, &t, (1..=10).map(|id| ins(&format!("{id} x"))).collect()).await;
    let moves =
        |first: i32| (1..=6).map(|id| moved(&format!("{id} -"), &format!("{} y", first + id))).collect();
    let net = collapse(&t, &changes(vec![moved("10 -", "11 y"), moved("9 -", "10 y")])).unwrap();
    assert_eq!(net, None, "one goes where another was");
    let net = collapse(&t, &changes(vec![moved("1 -", "7 y"), moved("2 -", "12 y")])).unwrap().unwrap();
    mismatch(target.net(&t, net).await);
    target.applier.rollback().await.unwrap();
    net_of(&mut target, &t, moves(20)).await;
    let ids = target.cluster.scalar("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t").await.unwrap();
    assert_eq!(ids, "7 8 9 10 21 22 23 24 25 26");
}
