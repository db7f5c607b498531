//! Exit codes, and the error that carries one up to `main`.

use std::fmt;
use std::process::ExitCode;

/// How the program ends. Scripts rely on the numbers; they never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Ok,
    /// The operation failed, or the daemon is not running, or a peer did not answer.
    Failed,
    /// The command line makes no sense (clap's own code is the same).
    Usage,
    /// `ping --until-direct` was answered, but never directly.
    NotDirect,
    /// The configuration is invalid.
    Config,
    /// Needs root, a capability, membership in a group, or a certificate that was not revoked.
    Permission,
    /// Nobody answered in time.
    Timeout,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage | Self::NotDirect => 2,
            Self::Config => 3,
            Self::Permission => 4,
            Self::Timeout => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A failure whose exit code is not plain [`Exit::Failed`]. Any error without one in its chain exits with 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// How to exit.
    pub exit: Exit,
    /// What went wrong and what to do next.
    pub message: String,
}

impl Failure {
    /// With this code and text.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// Invalid configuration.
    #[must_use]
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// Missing permission.
    #[must_use]
    pub fn permission(message: impl Into<String>) -> Self {
        Self::new(Exit::Permission, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code that an error asks for.
#[must_use]
pub fn of(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or(Exit::Failed, |failure| failure.exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_survives_any_context_around_the_failure() {
        let deep =
            anyhow::Error::new(Failure::permission("needs root")).context("opening the device").context("up");
        assert_eq!(of(&deep), Exit::Permission);
        assert_eq!(of(&anyhow::anyhow!("anything else")), Exit::Failed);
    }
}
