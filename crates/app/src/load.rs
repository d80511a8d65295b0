//! Getting the spec: the one place that reads the file and the environment.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::commands::fault_object;
use segue_engine::fault::Fault;
use segue_model::spec::{Problem, Spec, SpecError};
use serde_json::{Value, json};

/// Why there is no spec. Both are the user's to mend, and end with exit code 2.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the spec {}: {error}; name another file with -f or SEGUE_SPEC", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file says something that cannot be meant.
    #[error("{0}")]
    Refused(#[from] SpecError),
}

impl LoadError {
    /// The object of it: a fault's, and of a spec that is wrong each problem at its place.
    pub(crate) fn object(&self) -> Value {
        match self {
            LoadError::Unreadable { path, error } => {
                let what = format!("cannot read the spec {}: {error}", path.display());
                let next = "name another file with -f or SEGUE_SPEC";
                fault_object(&Fault::operator("SEGUE-SPEC-FILE", what, next))
            }
            LoadError::Refused(SpecError { file, problems }) => {
                let what: Vec<String> = problems.iter().map(|problem| in_a_line(file, problem)).collect();
                let next = "correct the spec, where `problems` says";
                let mut object = fault_object(&Fault::operator("SEGUE-SPEC", what.join("\n"), next));
                object["problems"] = problems.iter().map(|problem| placed(file, problem)).collect();
                object
            }
        }
    }
}

fn in_a_line(file: &str, problem: &Problem) -> String {
    format!("{file}:{}:{}: {}", problem.place.line, problem.place.column, problem.message)
}

fn placed(file: &str, problem: &Problem) -> Value {
    json!({
        "file": file,
        "line": problem.place.line,
        "column": problem.place.column,
        "message": problem.message,
        "help": problem.help.as_deref().unwrap_or_default(),
    })
}

/// Reads the spec at `path`, with variables from the environment of this process.
pub(crate) fn load(path: &Path) -> Result<Spec, LoadError> {
    let text =
        fs::read_to_string(path).map_err(|error| LoadError::Unreadable { path: path.to_owned(), error })?;
    let spec = Spec::parse(&path.display().to_string(), &text, &|name| std::env::var(name).ok())?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_spec_is_read_from_its_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(
            file,
            "migration: m\nsource: {{postgres: 'postgres://a/b'}}\ntarget: {{postgres: 'postgres://c/d'}}\ntables: [t]\n"
        )
        .unwrap();
        assert_eq!(load(file.path()).unwrap().name.as_str(), "m");
    }

    #[test]
    fn what_is_wrong_is_an_object_with_each_place() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "migration: M\nprofil: dev\n").unwrap();
        let object = load(file.path()).unwrap_err().object();
        assert_eq!(object["code"], "SEGUE-SPEC");
        let problems = object["problems"].as_array().unwrap();
        let found = |message: &str| problems.iter().find(|p| p["message"] == message).unwrap().clone();
        let unknown = found("unknown key `profil`");
        assert_eq!((&unknown["line"], &unknown["column"]), (&json!(2), &json!(1)));
        assert_eq!(unknown["help"], "did you mean `profile`?");
        assert_eq!(object["fault"].as_str().unwrap().lines().count(), problems.len());
        let missing = load(Path::new("/nowhere/segue.yaml")).unwrap_err().object();
        assert_eq!((&missing["code"], &missing["problems"]), (&json!("SEGUE-SPEC-FILE"), &Value::Null));
    }

    #[test]
    fn a_missing_file_is_named_with_the_way_out() {
        let message = load(Path::new("/nowhere/segue.yaml")).unwrap_err().to_string();
        assert!(message.starts_with("cannot read the spec /nowhere/segue.yaml: "), "{message}");
        assert!(message.ends_with("name another file with -f or SEGUE_SPEC"), "{message}");
    }
}
