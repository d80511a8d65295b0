//! Every check fires for what it is there for, and for nothing else, and its remedy puts it right.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says with it what it relies on")]

mod databases;
mod servers;
mod world;

use std::collections::BTreeSet;

#[test]
fn every_check_has_a_case() {
    let cases = databases::CASES.iter().map(|case| case.check);
    let cases: BTreeSet<&str> = cases.chain(servers::CHECKS.iter().copied()).collect();
    // What no other check owns: the owner of a code is tested beside the table.
    let all: BTreeSet<&str> = segue_postgres::preflight::names().filter(|name| *name != "plan").collect();
    assert_eq!(cases, all);
}
