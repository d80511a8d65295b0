//! Getting the spec: the one place that reads the file and the environment.

use std::path::{Path, PathBuf};
use std::{fs, io};

use segue_model::spec::{Spec, SpecError};

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
    fn a_missing_file_is_named_with_the_way_out() {
        let message = load(Path::new("/nowhere/segue.yaml")).unwrap_err().to_string();
        assert!(message.starts_with("cannot read the spec /nowhere/segue.yaml: "), "{message}");
        assert!(message.ends_with("name another file with -f or SEGUE_SPEC"), "{message}");
    }
}
