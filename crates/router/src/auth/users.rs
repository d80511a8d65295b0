//! The file of users: a line for each, `"name" "secret"`, as PgBouncer's. A secret is a password or PostgreSQL's verifier.
//!
//! It reads text; who reads the file, and when, is the embedder's business.

use super::scram::Keys;
use super::{Secret, Verifier};
use std::collections::HashMap;

/// Users by name.
#[derive(Debug, Clone, Default)]
pub struct Users {
    secrets: HashMap<String, Secret>,
    /// Verifiers of those of whom the password is known.
    stretched: HashMap<String, Verifier>,
}

/// A line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the users' file: {what}")]
pub struct UsersError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl Users {
    /// Reads the text of a file. Empty lines, and those that begin with `;` or `#`, say nothing.
    pub fn parse(text: &str) -> Result<Users, UsersError> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let wrong = |what| UsersError { line: index + 1, what };
            let (name, rest) = quoted(line).ok_or(wrong("a name in double quotes is missing"))?;
            let (secret, rest) =
                quoted(rest.trim_start()).ok_or(wrong("a secret in double quotes is missing"))?;
            if !rest.is_empty() {
                return Err(wrong("there is more than a name and a secret"));
            }
            let secret = if secret.starts_with("SCRAM-SHA-256$") {
                let verifier = Verifier::parse(&secret);
                Secret::Verifier(verifier.ok_or(wrong("the SCRAM verifier is damaged"))?)
            } else if secret.is_empty() {
                return Err(wrong("the secret is empty"));
            } else if secret.len() == 35 && secret.starts_with("md5") {
                return Err(wrong("an MD5 hash cannot be used: set the password anew as SCRAM-SHA-256"));
            } else {
                Secret::Password(secret)
            };
            if users.insert(name, secret).is_some() {
                return Err(wrong("this user was named before"));
            }
        }
        Ok(Users { secrets: users, stretched: HashMap::new() })
    }

    /// Adds a user, or gives one another secret.
    pub fn insert(&mut self, name: impl Into<String>, secret: Secret) {
        let name = name.into();
        self.stretched.remove(&name);
        self.secrets.insert(name, secret);
    }

    /// What is known of a user's password.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)
    }

    /// Stretches the passwords that were not stretched `before`: a millisecond for each. Done at a login, it would tell
    /// by its time who exists, and let strangers keep the router busy.
    pub(crate) fn stretch(&mut self, secret: &Keys, before: Option<&Users>) {
        for (name, password) in &self.secrets {
            let Secret::Password(password) = password else { continue };
            let known = before.filter(|users| users.secrets.get(name) == self.secrets.get(name));
            let verifier = known.and_then(|users| users.stretched.get(name)).cloned();
            let salt = Verifier::mock(secret, name).salt;
            let stretched = verifier.unwrap_or_else(|| Verifier::of(password, salt));
            self.stretched.insert(name.clone(), stretched);
        }
    }

    /// What a login is checked against; for nobody something that looks the same, and that nothing matches.
    pub(crate) fn verifier(&self, secret: &Keys, name: &str) -> Verifier {
        match self.secrets.get(name) {
            Some(Secret::Verifier(verifier)) => verifier.clone(),
            Some(Secret::Password(password)) => match self.stretched.get(name) {
                Some(verifier) => verifier.clone(),
                None => Verifier::of(password, Verifier::mock(secret, name).salt),
            },
            None => Verifier::mock(secret, name),
        }
    }
}

/// A string in double quotes, in which two of them stand for one, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        value.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_secrets_are_read() {
        let users = Users::parse("; users\n\n\"ann\" \"pass\"\n\"o\"\"k\"   \"a\"\"b\"\n").unwrap();
        assert_eq!(users.secret("ann"), Some(&Secret::Password("pass".into())));
        assert_eq!(users.secret("o\"k"), Some(&Secret::Password("a\"b".into())));
        assert_eq!(users.secret("bob"), None);
    }

    #[test]
    fn what_cannot_be_used_is_an_error_with_its_line() {
        for (text, line) in [
            ("ann pass", 1),
            ("\n\"ann\"", 2),
            ("\"ann\" \"x", 1),
            ("\"ann\" \"x\" y", 1),
            ("\"ann\" \"\"", 1),
            ("\"ann\" \"SCRAM-SHA-256$x\"", 1),
            ("\"ann\" \"md50123456789abcdef0123456789abcdef\"", 1),
            ("\"ann\" \"x\"\n\"ann\" \"y\"", 2),
        ] {
            assert_eq!(Users::parse(text).map_err(|e| e.line).err(), Some(line), "{text}");
        }
    }
}
