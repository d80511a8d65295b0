//! How a command ends: the exit codes that scripts rely on.

use std::process::ExitCode;

/// The outcome of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Done,
    /// It failed, and has said why.
    Fault,
    /// The command line or the spec is wrong.
    Usage,
    /// A condition that must hold does not.
    GateRefused,
    /// The sides differ.
    Divergence,
}

impl Exit {
    /// All of them, by code.
    pub(crate) const ALL: [Exit; 5] =
        [Exit::Done, Exit::Fault, Exit::Usage, Exit::GateRefused, Exit::Divergence];

    /// What a script sees.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Fault => 1,
            Exit::Usage => 2,
            Exit::GateRefused => 3,
            Exit::Divergence => 4,
        }
    }

    /// What it means, in the words of the help and of the documentation.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Fault => "a fault; the message says what to do next",
            Exit::Usage => "the command line or the spec is wrong; nothing was done",
            Exit::GateRefused => "a gate refused; what blocks it is printed",
            Exit::Divergence => "a difference between the two sides was found",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
