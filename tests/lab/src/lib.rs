//! ntcp-lab
