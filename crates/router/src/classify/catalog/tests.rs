//! Judging what depends on what.
//!
//! Verdicts over whole catalogs are tested with the classifier, beside which this is one chain.

use super::*;
use serde_json::{Value, json};

fn sql_function(name: &str, body: &str) -> Value {
    json!({"schema": "public", "name": name, "kind": "f", "volatility": "s", "language": "sql", "takes_row": false,
           "body": body, "calls": null})
}

fn read(functions: Vec<Value>) -> Catalog {
    let answer = json!({"levels": false, "relations": [], "functions": functions, "system_functions": [], "operators": [],
                        "implicit": []});
    Catalog::read(&answer.to_string(), &[]).unwrap()
}

#[test]
fn a_chain_is_judged_from_its_end_and_a_circle_never() {
    let chain = (0..20).map(|index| sql_function(&format!("f{index}"), &format!("SELECT f{}()", index + 1)));
    let ends = |body: &str| read(chain.clone().chain([sql_function("f20", body)]).collect());
    assert!(ends("SELECT 1").function(None, "f0").is_ok());
    assert_eq!(ends("DELETE FROM t").function(None, "f0").unwrap_err(), Why::Write);
    assert_eq!(ends("SELECT f3()").function(None, "f0").unwrap_err(), Why::UnknownFunction);
}

#[test]
fn a_chain_that_is_too_long_is_not_harmless() {
    let chain = (0..100).map(|index| sql_function(&format!("f{index}"), &format!("SELECT f{}()", index + 1)));
    let catalog = read(chain.chain([sql_function("f100", "SELECT 1")]).collect());
    assert!(catalog.function(None, "f99").is_ok());
    assert!(catalog.function(None, "f0").is_err());
}

#[test]
fn one_of_a_name_that_is_not_harmless_is_enough() {
    let other = json!({"schema": "app", "name": "f", "kind": "f", "volatility": "v", "language": "c",
                       "takes_row": false, "body": null, "calls": null});
    let catalog = read(vec![sql_function("f", "SELECT 1"), other]);
    assert_eq!(catalog.function(None, "f").unwrap_err(), Why::Volatile);
    assert!(catalog.function(Some("public"), "f").is_ok());
}
