//! Schemas of the kind people have: the target is created from the source, and is what pg_dump calls the same.
//!
//! `SEGUE_SCHEMA_FILES=dir cargo nextest run --run-ignored only -E 'binary(known_schemas)'` does the same with the `.sql`
//! files of that directory, in the order of their names, read by psql into the schema `public`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::Cluster;
use segue_testkit::cluster::client_program;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Pair, definitions::definitions};

fn load(cluster: &Cluster, file: &Path) {
    let output = Command::new(client_program("psql"))
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &cluster.url("postgres"), "-f"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
}

/// The source has what the files make; the target gets it.
async fn is_created(files: &[PathBuf]) {
    let pair = Pair::start(&["public.*"]).await;
    files.iter().for_each(|file| load(&pair.source, file));
    // Roles are the server's, not the database's: Segue does not make them.
    let roles = "SELECT coalesce(string_agg(format('CREATE ROLE %I', rolname), ';'), '') FROM pg_roles
                 WHERE rolname !~ '^pg_' AND NOT rolsuper";
    pair.target.execute(&pair.source.scalar(roles).await.unwrap()).await;
    let urls = [&pair.source, &pair.target].map(|cluster| cluster.url("postgres"));
    pair.write_spec(&urls[0], &urls[1], &["public.*"], "schema: { create: missing }\n");
    pair.segue(&["plan"], 0);
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.caught_up().await;

    let names = "SELECT string_agg(format('%I.%I', schemaname, tablename), E'\\n') FROM pg_tables
                 WHERE schemaname = 'public'";
    let tables: Vec<String> =
        pair.source.scalar(names).await.unwrap().lines().map(|table| format!("--table={table}")).collect();
    let (expected, found) = (definitions(&pair.source, &tables), definitions(&pair.target, &tables));
    let lacking: Vec<&String> = expected.iter().filter(|part| !found.contains(part)).collect();
    let extra: Vec<&String> = found.iter().filter(|part| !expected.contains(part)).collect();
    assert!(lacking.is_empty() && extra.is_empty(), "lacking {lacking:#?}\nextra {extra:#?}");
    pair.segue(&["verify"], 0);
    pair.assert_equal(&["public"]).await;
    pair.stop(&run).await;
}

fn own(name: &str) -> Vec<PathBuf> {
    vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas").join(name)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_music_store() {
    is_created(&own("music.sql")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn film_rental() {
    is_created(&own("films.sql")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "SEGUE_SCHEMA_FILES says which"]
async fn other_files() {
    let dir = std::env::var_os("SEGUE_SCHEMA_FILES").expect("SEGUE_SCHEMA_FILES names a directory");
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|e| e == "sql")).collect();
    files.sort();
    assert!(!files.is_empty(), "no .sql files there");
    is_created(&files).await;
}
