//! How a command ends: the exit codes that scripts rely on.

use std::process::ExitCode;

/// The outcome of a command; the long help of `segue` lists the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Done,
    /// It failed, and has said why.
    Fault,
    /// The command line or the spec is wrong.
    Usage,
    /// A condition that must hold does not.
    #[expect(dead_code, reason = "no command of this build can end so")]
    GateRefused,
    /// The sides differ.
    Divergence,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Fault => 1,
            Exit::Usage => 2,
            Exit::GateRefused => 3,
            Exit::Divergence => 4,
        })
    }
}
