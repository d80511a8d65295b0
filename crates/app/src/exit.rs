//! How a command ends: the exit codes that scripts rely on.

use segue_engine::fault::Fault;
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

/// Faults whose cause is what somebody wrote: on the command line, in the spec, or in a file that the spec names.
const WRITTEN_WRONG: [&str; 9] = [
    "SEGUE-NO-ROUTER",
    "SEGUE-OVERRIDE",
    "SEGUE-ROUTER",
    "SEGUE-ROUTER-TLS",
    "SEGUE-ROUTER-USERS",
    "SEGUE-SELECTION",
    "SEGUE-SPEC",
    "SEGUE-URL",
    "SEGUE-USAGE",
];

impl Exit {
    /// All of them, by code.
    pub(crate) const ALL: [Exit; 5] =
        [Exit::Done, Exit::Fault, Exit::Usage, Exit::GateRefused, Exit::Divergence];

    /// How a command ends with a fault before anything was done.
    pub(crate) fn of(fault: &Fault) -> Exit {
        if WRITTEN_WRONG.contains(&fault.code) { Exit::Usage } else { Exit::Fault }
    }

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
