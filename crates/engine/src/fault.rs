//! What went wrong, to what, and what to do next.
//!
//! Every error that leaves an adapter or the engine is a [`Fault`]. Its [`Recovery`] decides what happens
//! next, in one place ([`Recovery`] is matched exhaustively, never with a catch-all arm).

use std::fmt;

/// What happens after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Reconnect with back-off and go on from the last durable state: a connection was lost, a server restarts.
    Retry,
    /// Only a person can help: stop, say so, keep everything as it is.
    Operator,
    /// It cannot be known whether the last request took effect: take a new token, then read the durable state.
    Ambiguous,
    /// Segue itself is wrong: stop, and say so.
    Bug,
}

/// What went wrong, to what, and the operator's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens after it.
    pub recovery: Recovery,
    /// Stable short name, `SEGUE-…`, for documentation and machines.
    pub code: &'static str,
    /// What happened, with the name of the object it happened to.
    pub what: String,
    /// What the operator should do; empty when Segue goes on by itself.
    pub next_step: String,
}

impl Fault {
    /// A passing fault: Segue retries by itself.
    pub fn retry(code: &'static str, what: impl Into<String>) -> Fault {
        Fault { recovery: Recovery::Retry, code, what: what.into(), next_step: String::new() }
    }

    /// A fault that needs a person, with what they should do.
    pub fn operator(code: &'static str, what: impl Into<String>, next_step: impl Into<String>) -> Fault {
        Fault { recovery: Recovery::Operator, code, what: what.into(), next_step: next_step.into() }
    }

    /// A request whose outcome cannot be known.
    pub fn ambiguous(code: &'static str, what: impl Into<String>) -> Fault {
        Fault { recovery: Recovery::Ambiguous, code, what: what.into(), next_step: String::new() }
    }

    /// Something that cannot happen if Segue is right.
    pub fn bug(code: &'static str, what: impl Into<String>) -> Fault {
        let next_step = "this is a defect in Segue; nothing was skipped. Keep the log and report it".into();
        Fault { recovery: Recovery::Bug, code, what: what.into(), next_step }
    }

    /// Says in which larger step it happened: `while copying public.orders: …`.
    #[must_use]
    pub fn during(mut self, step: impl fmt::Display) -> Fault {
        self.what = format!("{step}: {}", self.what);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what, self.code)?;
        if self.next_step.is_empty() { Ok(()) } else { write!(f, "\n  next: {}", self.next_step) }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_step_object_code_and_next_step() {
        let fault = Fault::operator("SEGUE-KEY", "public.t has no key", "add one").during("while planning");
        assert_eq!(fault.to_string(), "while planning: public.t has no key [SEGUE-KEY]\n  next: add one");
    }
}
