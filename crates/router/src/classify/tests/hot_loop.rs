//! What the router reads in a statement's text takes as many instructions as it did. Its shape is known: that is how nearly
//! every statement is met.

use super::*;
use crate::effects::{self, Effects};
use crate::reads;
use segue_testkit::instructions::HotLoop;
use std::hint::black_box;

const PAGES: usize = 30;

/// pgbench's transaction `n` (TPC-B), and a page of an application's.
fn texts(n: usize) -> Vec<String> {
    let (account, teller, delta) = (n * 7_919 % 100_000 + 1, n % 10 + 1, n * 37 % 5_000);
    vec![
        "BEGIN;".to_owned(),
        format!("UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {account};"),
        format!("SELECT abalance FROM pgbench_accounts WHERE aid = {account};"),
        format!("UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {teller};"),
        format!("UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = 1;"),
        format!(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
             VALUES ({teller}, 1, {account}, {delta}, CURRENT_TIMESTAMP);"
        ),
        "END;".to_owned(),
        format!(
            "SELECT \"t\".\"a\", u.b FROM t JOIN u ON u.a = t.a /* page {n} */\n\
             WHERE t.name = 'Jane O''Neill' AND u.b IN ({teller}, {account}, {delta}) ORDER BY 1 LIMIT 20"
        ),
    ]
}

#[test]
fn reading_statements_keeps_its_instructions() {
    let texts: Vec<String> = (0..PAGES).flat_map(texts).collect();
    let classifier = Classifier::new();
    let read_all = || {
        for text in &texts {
            let text = black_box(text.as_bytes());
            // As `Session::query` does.
            let class = classifier.class(text);
            let effects = class.plain.map_or_else(|| effects::read(text), Effects::none);
            black_box((reads::tenant_in(text), effects));
        }
    };
    read_all();
    HotLoop {
        name: "statement",
        test: concat!(module_path!(), "::reading_statements_keeps_its_instructions"),
        item: "statement",
        items: texts.len(),
        rounds: 2,
    }
    .keeps_its_instructions(read_all);
}
