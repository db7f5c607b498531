//! A second process that holds open sockets: where one process may not have enough descriptors for both ends of ten
//! thousand connections, and root may not raise that either.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::io::Read as _;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context as _;
use anyhow::Result;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;

/// The first argument of the second process.
pub(crate) const WORD: &str = "hold-sockets";

/// It, running; it ends when this is dropped, and what it holds is closed.
pub(crate) struct Holder {
    line: UnixStream,
    child: Child,
}

impl Holder {
    pub(crate) fn start() -> Result<Self> {
        let (line, far) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg(WORD).stdin(Stdio::from(OwnedFd::from(far))).spawn()?;
        Ok(Self { line, child })
    }

    /// Gives one away.
    pub(crate) fn keep(&mut self, socket: impl Into<OwnedFd>) -> Result<()> {
        let socket = socket.into();
        let sent = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&sent));
        rustix::net::sendmsg(&self.line, &[IoSlice::new(&[1])], &mut control, SendFlags::empty())?;
        // One at a time: the kernel bounds how many are on their way.
        self.line.read_exact(&mut [0]).context("the process that holds sockets is gone")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.line.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// What the second process does: holds what comes by its standard input until that ends.
pub(crate) fn hold() -> Result<()> {
    let mut line = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut held: Vec<OwnedFd> = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let got =
            rustix::net::recvmsg(&line, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty())?;
        if got.bytes == 0 {
            return Ok(());
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                held.extend(sockets);
            }
        }
        line.write_all(&[1])?;
    }
}
