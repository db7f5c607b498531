//! Floor 6: from what people write to what the program does.
//!
//! Two types, one way between them. [`file::File`] is what somebody wrote: every key optional, nothing checked but
//! spelling and type. [`settings::Settings`] is what the program does: complete, checked, with every default filled in.
//! All checks happen on the way from one to the other, and each failure names the line, the column and the next thing
//! to do; after that no function re-checks. Flags and environment arrive as [`settings::Overrides`] and win over the file.
//!
//! The way is pure ([`file::parse`], [`settings::Settings::build`]); only [`load::load`] touches the disk.

pub mod build;
pub mod credentials;
pub mod exit;
pub mod file;
pub mod load;
pub mod proxy;
pub mod register;
pub mod schema;
pub mod settings;
pub mod units;
