//! Ten differences, planted on the target: who finds how many.

use super::super::pair::{DATABASE, Pair, must};
use super::peers::Finder;
use super::{Tables, assert_equal};
use std::collections::BTreeSet;

/// A table whose numbers keep the scale they were written with.
pub(super) const EXACT: &str = "exact";
pub(super) const MAKE_EXACT: &str = "CREATE TABLE exact (id bigint PRIMARY KEY, amount numeric)";
pub(super) const FILL_EXACT: &str =
    "INSERT INTO exact SELECT i, (i / 100.0)::numeric(12,2) FROM generate_series(1, 1000) i";

/// One row that is not as on the source.
struct Planted {
    table: &'static str,
    key: i64,
    what: &'static str,
    statement: &'static str,
}

const PLANTED: [Planted; 10] = [
    Planted {
        table: "pgbench_accounts",
        key: 17,
        what: "another number",
        statement: "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 17",
    },
    Planted {
        table: "pgbench_accounts",
        key: 77_777,
        what: "a missing row",
        statement: "DELETE FROM pgbench_accounts WHERE aid = 77777",
    },
    Planted {
        table: "pgbench_accounts",
        key: 1_000_000_000,
        what: "an extra row",
        statement: "INSERT INTO pgbench_accounts VALUES (1000000000, 1, 0, '')",
    },
    Planted {
        table: "wide",
        key: 1_003,
        what: "another text",
        statement: "UPDATE wide SET note = note || '.' WHERE id = 1003",
    },
    Planted {
        table: "wide",
        key: 2_007,
        what: "another jsonb",
        statement: "UPDATE wide SET doc = doc || '{\"of\": 99}' WHERE id = 2007",
    },
    Planted {
        table: "wide",
        key: 3_010,
        what: "an empty text for NULL",
        statement: "UPDATE wide SET name = '' WHERE id = 3010",
    },
    Planted {
        table: "wide",
        key: 4_001,
        what: "NULL for false",
        statement: "UPDATE wide SET active = NULL WHERE id = 4001",
    },
    Planted {
        table: "wide",
        key: 5_555,
        what: "a missing row",
        statement: "DELETE FROM wide WHERE id = 5555",
    },
    Planted {
        table: "wide",
        key: 0,
        what: "an extra row",
        statement: "INSERT INTO wide (id, tenant) VALUES (0, 1)",
    },
    Planted {
        table: EXACT,
        key: 100,
        what: "1.0 for 1.00",
        statement: "UPDATE exact SET amount = 1.0 WHERE id = 100",
    },
];

/// Plants them, asks everybody, and mends them.
pub(super) async fn measure(pair: &Pair) -> String {
    plant(pair).await;
    let mut text = format!(
        "\n### planted differences\n\nOn the target, in the three tables: {}. The last one is in a table of 1000 rows, whose \
         column is a `numeric` without a scale.\n\n| tool | found of {} | not found | said to differ beside them |\n|---|---:|---|---:|\n",
        PLANTED.map(|planted| planted.what).join(", "),
        PLANTED.len()
    );
    let mut notes = String::new();
    for finder in Finder::ALL {
        let (missed, beside) = asked(pair, finder, &mut notes).await;
        if finder == Finder::Segue {
            assert!(missed.is_empty() && beside == 0, "segue finds all and no other: {missed:?}, {beside}");
        }
        let found = PLANTED.len() - missed.len();
        let missed = if missed.is_empty() { "–".to_owned() } else { missed.join(", ") };
        text.push_str(&format!("| {} | {found} | {missed} | {beside} |\n", finder.name()));
    }
    text.push_str(&notes);
    pair.segue_to_end(&["verify", "--repair"]).await;
    assert_equal(pair, Tables::All).await;
    text
}

/// Past the fence, as a superuser can who insists on it.
async fn plant(pair: &Pair) {
    let target = Pair::connect(&pair.target, DATABASE).await;
    must(target.batch_execute("SET session_replication_role = replica").await, "go past the fence");
    for Planted { what, statement, .. } in &PLANTED {
        assert_eq!(must(target.execute(*statement, &[]).await, what), 1, "{statement}");
    }
}

/// What a tool did not find, and how many rows it named that do not differ.
async fn asked(pair: &Pair, finder: Finder, notes: &mut String) -> (Vec<&'static str>, usize) {
    let (mut missed, mut beside) = (Vec::new(), 0);
    for (table, key) in Tables::All.with_keys() {
        let here = || PLANTED.iter().filter(|planted| planted.table == *table);
        let found = match finder.keys(pair, table, key).await {
            Ok(found) => found,
            // Only there may a tool fail: what is missing is not its ability to compare what it knows.
            Err(why) if *table == EXACT => {
                notes.push_str(&format!(
                    "\n{} cannot compare the last table: `{}`.\n",
                    finder.name(),
                    why.trim()
                ));
                BTreeSet::new()
            }
            Err(why) => panic!("{} does not compare {table}: {why}", finder.name()),
        };
        missed.extend(here().filter(|planted| !found.contains(&planted.key)).map(|planted| planted.what));
        beside += found.iter().filter(|found| here().all(|planted| planted.key != **found)).count();
    }
    (missed, beside)
}
