//! What pg_dump says that a server has.

use segue_testkit::Cluster;
use segue_testkit::cluster::client_program;
use std::process::Command;

/// The definitions of what `selected` (options of pg_dump) names, in order, without the fence.
pub fn definitions<S: AsRef<str>>(cluster: &Cluster, selected: &[S]) -> Vec<String> {
    let output = Command::new(client_program("pg_dump"))
        .arg("--schema-only")
        .args(selected.iter().map(AsRef::as_ref))
        .args(["--dbname", &cluster.url("postgres")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let said = text.split("\n\n").map(str::trim).filter(|part| {
        let is_said = !part.starts_with("--") && !part.starts_with('\\');
        !part.is_empty() && is_said && !part.contains("segue_fence_")
    });
    let mut said: Vec<String> = said.map(str::to_owned).collect();
    said.sort();
    said
}
