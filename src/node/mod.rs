//! Floor 5: a whole member of the mesh as one value.

pub mod output;
pub mod request;
pub mod status;
