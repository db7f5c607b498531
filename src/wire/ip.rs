//! A read-only view of an IP packet: as much as routing and source checks need.
//!
//! (Face as `node` uses it; the wire owner replaces the body: checks lengths, walks extension headers, clamps the MSS.)

use super::WireError;
use std::net::IpAddr;
/// What routing needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Length by the header, at most the buffer.
    pub total_len: usize,
}
/// Reads a packet.
///
/// # Errors
/// Whatever is wrong with it.
pub fn parse(p: &[u8]) -> Result<View, WireError> {
    let mut r = crate::base::cursor::Reader::new(p);
    if p.first().is_some_and(|b| b >> 4 == 4) {
        let _ = r.u16()?;
        let l = r.u16()?;
        let _ = r.u64()?;
        Ok(View {
            source: IpAddr::from(r.array::<4>()?),
            destination: IpAddr::from(r.array::<4>()?),
            is_v6: false,
            total_len: l.into(),
        })
    } else {
        let _ = r.u32()?;
        let l = r.u16()?;
        let _ = r.u16()?;
        Ok(View {
            source: IpAddr::from(r.array::<16>()?),
            destination: IpAddr::from(r.array::<16>()?),
            is_v6: true,
            total_len: usize::from(l) + 40,
        })
    }
}
/// Lowers the MSS of a TCP SYN; true if it did.
pub fn clamp_mss(_p: &mut [u8], _m: u16) -> bool {
    false
}
