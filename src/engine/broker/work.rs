//! The one thread that writes the database and signs: nothing else waits for the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::oneshot;

use crate::base::hidden::Hidden;
use crate::base::id::RequestId;
use crate::base::time::UnixTime;
use crate::broker::registry::ConnId;
use crate::config::credentials;
use crate::engine::broker::hub::Hub;
use crate::engine::broker::store::Enrolled;
use crate::engine::broker::store::Grant;
use crate::engine::broker::store::RedeemError;
use crate::engine::broker::store::Store;
use crate::engine::clock;
use crate::engine::tls;
use crate::identity::authority::Authority;
use crate::identity::authority::default_lifetime;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Subject;
use crate::identity::credentials::Credentials;
use crate::identity::names::MemberName;
use crate::wire::broker::Refusal;
use crate::wire::enroll::SigningRequest;

/// Where an answer goes.
type Answer<T> = oneshot::Sender<anyhow::Result<T>>;

/// Why a guest is turned away, in a code and in words.
pub(super) type Refused = (Refusal, String);

/// Something to write.
#[derive(Debug)]
pub(super) enum Work {
    Remember(Box<Certificate>),
    Seen(MemberName, UnixTime),
    Renew {
        conn: ConnId,
        request: RequestId,
        subject: Box<Subject>,
        key: [u8; 32],
    },
    Redeem {
        secret: Hidden<[u8; 32]>,
        request: Box<SigningRequest>,
        from: std::net::IpAddr,
        answer: oneshot::Sender<Result<Vec<u8>, Refused>>,
    },
    AddInvite {
        secret: Hidden<[u8; 32]>,
        grant: Box<Grant>,
        answer: Answer<()>,
    },
    Revoke {
        name: MemberName,
        answer: Answer<u64>,
    },
    Import {
        signed: Vec<u8>,
        answer: Answer<u64>,
    },
    Members {
        answer: Answer<Vec<Enrolled>>,
    },
    RenewServer {
        credentials: Box<Credentials>,
        answer: Answer<Option<Certificate>>,
    },
    RenewOwn,
    Stop,
}

/// The worker's own.
pub(super) struct Worker {
    pub(super) hub: Arc<Hub>,
    pub(super) store: Store,
    pub(super) authority: Option<Authority>,
    pub(super) credentials: Credentials,
    pub(super) dir: PathBuf,
    pub(super) lifetime: Duration,
}

/// Starts the worker's thread.
///
/// # Errors
/// If it cannot be started.
pub(super) fn spawn(worker: Worker, orders: Receiver<Work>) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("broker-store".to_owned()).spawn(move || worker.run(&orders))
}

/// Asks the worker and waits.
pub(super) async fn ask<T>(work: &Sender<Work>, make: impl FnOnce(Answer<T>) -> Work) -> anyhow::Result<T> {
    let (answer, answered) = oneshot::channel();
    work.send(make(answer)).ok().context("the broker is shutting down")?;
    answered.await.context("the broker is shutting down")?
}

impl Worker {
    fn run(mut self, orders: &Receiver<Work>) {
        while let Ok(work) = orders.recv() {
            match work {
                Work::Stop => return,
                Work::Remember(certificate) => self.remember(&certificate),
                Work::Seen(name, at) => {
                    if let Err(error) = self.store.seen(&name, at) {
                        tracing::warn!(%name, error = %format!("{error:#}"), "the database cannot be written");
                    }
                }
                Work::Renew { conn, request, subject, key } => self.renew(conn, request, &subject, &key),
                Work::Redeem { secret, request, from, answer } => {
                    let _ = answer.send(self.redeem(&secret.0, &request, from));
                }
                Work::AddInvite { secret, grant, answer } => {
                    let _ = answer.send(self.add_invite(&secret.0, &grant));
                }
                Work::Revoke { name, answer } => {
                    let _ = answer.send(self.revoke(&name));
                }
                Work::Import { signed, answer } => {
                    let _ = answer.send(self.import(signed));
                }
                Work::Members { answer } => {
                    let _ = answer.send(self.store.members());
                }
                Work::RenewServer { credentials, answer } => {
                    let _ = answer.send(self.renew_server(&credentials));
                }
                Work::RenewOwn => {
                    if let Err(error) = self.renew_own() {
                        tracing::warn!(error = %format!("{error:#}"), "the broker's own certificate cannot be renewed");
                    }
                }
            }
        }
    }

    fn remember(&self, certificate: &Certificate) {
        let name = &certificate.subject.uri.name;
        match self.store.remember(certificate, clock::now().unix) {
            Ok(()) => {
                tracing::info!(target: "audit", %name, serial = %certificate.serial, "first seen: signed elsewhere");
            }
            Err(error) => {
                tracing::warn!(%name, error = %format!("{error:#}"), "the database cannot be written");
            }
        }
    }

    fn redeem(
        &self,
        secret: &[u8; 32],
        request: &SigningRequest,
        from: std::net::IpAddr,
    ) -> Result<Vec<u8>, Refused> {
        let Some(authority) = &self.authority else {
            let text = "this broker cannot sign certificates: enrol at the one that made the invite";
            return Err((Refusal::NoAuthority, text.to_owned()));
        };
        let now = clock::now();
        let holder = self.hub.with_broker(|broker, _, _| broker.holder_of(&request.wg).cloned());
        match self.store.redeem(secret, request, holder.as_ref(), authority, self.lifetime, now.unix) {
            Ok(certificate) => {
                let (name, serial) = (&certificate.subject.uri.name, certificate.serial);
                tracing::info!(target: "audit", %name, %serial, %from, "enrolled");
                let der = certificate.der.clone();
                self.hub.with_broker(|broker, now, _| broker.handle_enrolled(certificate, now));
                Ok(der)
            }
            Err(RedeemError::Refused(why, text)) => {
                tracing::info!(target: "audit", wanted = %request.name, ?why, %from, "enrolment refused");
                Err((why, text))
            }
            Err(RedeemError::Failed(error)) => {
                tracing::error!(error = %format!("{error:#}"), %from, "enrolment failed");
                Err((Refusal::NoAuthority, "the broker failed, see its log: try again later".to_owned()))
            }
        }
    }

    fn renew(&self, conn: ConnId, request: RequestId, subject: &Subject, key: &[u8; 32]) {
        let name = &subject.uri.name;
        let renewed = match &self.authority {
            None => Err((Refusal::NoAuthority, "this broker cannot sign certificates".to_owned())),
            Some(authority) => {
                let lifetime = self.lifetime_of(subject);
                self.store.renew(subject, key, authority, lifetime, clock::now().unix).map_err(|error| {
                    tracing::warn!(%name, error = %format!("{error:#}"), "a renewal failed");
                    (Refusal::NoAuthority, "the broker failed, see its log: try again later".to_owned())
                })
            }
        };
        if let Ok(certificate) = &renewed {
            tracing::info!(target: "audit", %name, serial = %certificate.serial, "renewed");
        }
        self.hub.with_broker(|broker, _, out| broker.handle_renewed(conn, request, renewed, out));
    }

    fn add_invite(&self, secret: &[u8; 32], grant: &Grant) -> anyhow::Result<()> {
        if self.authority.is_none() {
            anyhow::bail!(
                "this broker cannot sign certificates, so it cannot invite: use `cert sign` where the CA key is"
            );
        }
        self.store.add_invite(secret, grant, clock::now().unix)?;
        let name = grant.name.as_ref().map_or("any", MemberName::as_str);
        tracing::info!(target: "audit", name, groups = ?grant.groups, relay = grant.roles.relay, expires = grant.expires.secs(), "invited");
        Ok(())
    }

    fn revoke(&self, name: &MemberName) -> anyhow::Result<u64> {
        let authority = self.authority.as_ref().context(
            "this broker has no CA key: run `cert revoke --ca` where it is, then `cert revoke --import` here",
        )?;
        if *name == self.credentials.certificate.subject.uri.name {
            anyhow::bail!("{name} is this broker itself: revoking it would cut everybody off");
        }
        let (list, signed) = self.store.revoke(name, authority, clock::now().unix)?;
        let version = list.version;
        tracing::info!(target: "audit", %name, version, "revoked");
        self.hub.with_broker(|broker, now, out| broker.handle_revocations(list, signed, now, out));
        Ok(version)
    }

    fn import(&self, signed: Vec<u8>) -> anyhow::Result<u64> {
        let list = self.store.import_revocations(&signed, clock::now().unix)?;
        let version = list.version;
        tracing::info!(target: "audit", version, serials = list.serials.len(), "revocation list imported");
        self.hub.with_broker(|broker, now, out| broker.handle_revocations(list, signed, now, out));
        Ok(version)
    }

    /// Signs anew for a role of this process (the broker, an embedded relay), if it is time.
    fn renew_server(&self, credentials: &Credentials) -> anyhow::Result<Option<Certificate>> {
        let now = clock::now().unix;
        let Some(authority) = self.authority.as_ref().filter(|_| now >= credentials.certificate.renew_at())
        else {
            return Ok(None);
        };
        self.store.remember(&credentials.certificate, now)?;
        let (subject, key) = (&credentials.certificate.subject, &credentials.certificate.key);
        let renewed = self.store.renew(subject, key, authority, self.lifetime_of(subject), now)?;
        tracing::info!(target: "audit", name = %subject.uri.name, serial = %renewed.serial, "renewed");
        Ok(Some(renewed))
    }

    fn renew_own(&mut self) -> anyhow::Result<()> {
        let Some(renewed) = self.renew_server(&self.credentials)? else { return Ok(()) };
        self.credentials = credentials::replace_certificate(&self.dir, &renewed.der)?;
        *self.hub.tls.write().unwrap_or_else(PoisonError::into_inner) = tls::server(&self.credentials)?;
        Ok(())
    }

    fn lifetime_of(&self, subject: &Subject) -> Duration {
        let serves = subject.roles.broker || subject.roles.relay && !subject.roles.member;
        if serves { default_lifetime(subject.roles) } else { self.lifetime }
    }
}
