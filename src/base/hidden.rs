//! Values that must not be seen in a log, wherever somebody prints what contains them.

use std::fmt;

/// A secret. Its `Debug` says only that it is one; whoever needs the value takes it out by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden<T>(pub T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}
