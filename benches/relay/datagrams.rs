//! How many datagrams get lost at which rate and size: a sender that keeps a rate, a receiver that counts.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;

/// The sender sends what has become due this often.
const TICK: Duration = Duration::from_millis(1);
/// Receive buffer of the counting end, bytes: what is lost is to be lost on the way.
const BUFFER: usize = 8 << 20;

/// A way for datagrams.
pub(crate) struct Post {
    /// Connected.
    pub(crate) near: UdpSocket,
    pub(crate) far: UdpSocket,
    /// A datagram with a payload of so many bytes.
    pub(crate) wrap: Box<dyn Fn(usize) -> Vec<u8>>,
}

/// What became of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    /// What was really sent, payload Mbit/s: on a busy machine less than was asked for.
    pub(crate) offered: f64,
    /// Of the datagrams, 0 to 1.
    pub(crate) lost: f64,
}

/// Sends payloads of `size` bytes at `mbits` for so long.
pub(crate) fn measure(post: &Post, size: usize, mbits: f64, length: Duration) -> Result<Loss> {
    let stop = Arc::new(AtomicBool::new(false));
    let (far, stopped) = (post.far.try_clone()?, Arc::clone(&stop));
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&far, BUFFER)?;
    far.set_read_timeout(Some(Duration::from_millis(100)))?;
    let counting = thread::spawn(move || {
        let (mut count, mut buffer) = (0_u64, vec![0; 2048]);
        loop {
            match far.recv(&mut buffer) {
                Ok(_) => count += 1,
                // Nothing for a while after the last one was sent.
                Err(_) if stopped.load(Ordering::Relaxed) => return count,
                Err(_) => {}
            }
        }
    });
    let datagram = (post.wrap)(size);
    let (begin, mut sent) = (Instant::now(), 0_u64);
    while begin.elapsed() < length {
        let due = mbits * 1e6 / 8.0 / size as f64 * begin.elapsed().as_secs_f64();
        while (sent as f64) < due && begin.elapsed() < length {
            // A full send buffer is a loss at the sender; it is asked again, as iperf does.
            sent += u64::from(post.near.send(&datagram).is_ok());
        }
        thread::sleep(TICK);
    }
    let offered = sent as f64 * size as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e6;
    stop.store(true, Ordering::Relaxed);
    let received = counting.join().map_err(|_| anyhow::anyhow!("the counting end has panicked"))?;
    Ok(Loss { offered, lost: 1.0 - (received as f64 / sent.max(1) as f64).min(1.0) })
}
