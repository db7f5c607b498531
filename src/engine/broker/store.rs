//! What a broker must not forget: members, their addresses, invites, revocations. One `redb` file; what is answered was
//! on disk before.

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::bail;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use redb::Database;
use redb::Durability;
use redb::ReadableDatabase as _;
use redb::ReadableTable as _;
use redb::TableDefinition;
use redb::WriteTransaction;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::time::UnixTime;
use crate::broker::assign::Held;
use crate::broker::assign::assign;
use crate::broker::directory::Directory;
use crate::broker::directory::is_same_holder;
use crate::identity::authority::Authority;
use crate::identity::authority::validity;
use crate::identity::certificate::Certificate;
use crate::identity::certificate::Roles;
use crate::identity::certificate::Serial;
use crate::identity::certificate::Subject;
use crate::identity::certificate::TrustAnchor;
use crate::identity::names::GroupName;
use crate::identity::names::MemberName;
use crate::identity::names::MemberUri;
use crate::identity::revocation::RevocationList;
use crate::wire::broker::Refusal;
use crate::wire::enroll::SigningRequest;

/// Name to [`MemberRow`].
const MEMBERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("members");
/// IPv4 address to [`AddressRow`].
const ADDRESSES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("addresses");
/// SHA-256 of the secret to [`InviteRow`]: whoever steals the file cannot join with it.
const INVITES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("invites");
/// Serial of every certificate that was signed or seen, to [`IssuedRow`]: all of a member's are revoked with it.
const ISSUED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("issued");
/// Key to value: see the constants below.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const META_SCHEMA: &str = "schema";
const META_CA: &str = "ca";
const META_REVOCATIONS: &str = "revocations";

/// Version of the tables.
const SCHEMA: &[u8] = b"1";
/// The database's cache; its default of 1 GiB would be most of a small server.
const CACHE: usize = 8 << 20;
/// Expired invites stay so long, so that a late answer still says "expired" and a retry still finds its certificate.
const INVITE_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is stored of a member; all else stands in the certificate.
#[derive(Serialize, Deserialize, Clone, Debug)]
struct MemberRow {
    /// DER in base64.
    certificate: String,
    /// Seconds since 1970.
    created: u64,
    last_seen: u64,
    removed: Option<u64>,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
struct AddressRow {
    name: String,
    released: Option<u64>,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
struct IssuedRow {
    name: String,
    not_after: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
struct InviteRow {
    name: Option<String>,
    groups: Vec<String>,
    member: bool,
    relay: bool,
    created: u64,
    expires: u64,
    /// The certificate that it was used for.
    used: Option<String>,
}

/// A member for the administrator's eyes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Its newest certificate.
    pub certificate: Certificate,
    /// When it was enrolled, or first seen.
    pub created: UnixTime,
    /// When it was last connected.
    pub last_seen: UnixTime,
}

/// What an invite will give.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The name; without it, the one that the machine asks for.
    pub name: Option<MemberName>,
    /// Sorted, without repetition.
    pub groups: Vec<GroupName>,
    /// What the machine may be.
    pub roles: Roles,
    /// Until when.
    pub expires: UnixTime,
}

/// Why nobody was enrolled.
#[derive(Debug)]
pub enum RedeemError {
    /// The guest's fault; he is told so.
    Refused(Refusal, String),
    /// Ours.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for RedeemError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The file.
pub struct Store {
    database: Database,
    anchor: TrustAnchor,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.anchor.network)
    }
}

impl Store {
    /// Opens the file at `path` or makes it, for this user alone.
    ///
    /// # Errors
    /// If it cannot be opened, another process has it, or it belongs to another network.
    pub fn open(path: &Path, anchor: TrustAnchor) -> anyhow::Result<Self> {
        if !path.exists() {
            // A file that was begun and not finished is none: it gets its name when it is whole.
            let begun = path.with_extension("new");
            match std::fs::remove_file(&begun) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("{}: cannot be removed", begun.display()));
                }
                _ => {}
            }
            drop(Self::open_file(&begun, anchor.clone())?);
            let named = std::fs::rename(&begun, path).and_then(|()| sync_directory(path));
            named.with_context(|| format!("{}: cannot be written", path.display()))?;
        }
        Self::open_file(path, anchor)
    }

    fn open_file(path: &Path, anchor: TrustAnchor) -> anyhow::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.with_context(|| format!("{}: cannot be opened", path.display()))?;
        let database = Database::builder().set_cache_size(CACHE).create_file(file).with_context(|| {
            format!("{}: not a broker's database, or another broker uses it", path.display())
        })?;
        let store = Self { database, anchor };
        store.found().with_context(|| format!("{}", path.display()))?;
        Ok(store)
    }

    fn found(&self) -> anyhow::Result<()> {
        let txn = self.database.begin_write()?;
        {
            let _ = txn.open_table(MEMBERS)?;
            let _ = txn.open_table(ADDRESSES)?;
            let _ = txn.open_table(INVITES)?;
            let _ = txn.open_table(ISSUED)?;
            let mut meta = txn.open_table(META)?;
            let read = |meta: &redb::Table<'_, &str, &[u8]>, key| -> anyhow::Result<Option<Vec<u8>>> {
                Ok(meta.get(key)?.map(|value| value.value().to_vec()))
            };
            match read(&meta, META_SCHEMA)? {
                None => {
                    meta.insert(META_SCHEMA, SCHEMA)?;
                    meta.insert(META_CA, self.anchor.fingerprint().as_slice())?;
                }
                Some(schema) if schema != SCHEMA => bail!("written by a newer ntcp-overlay: update this one"),
                Some(_) if read(&meta, META_CA)?.as_deref() != Some(self.anchor.fingerprint().as_slice()) => {
                    bail!(
                        "belongs to another network: every network's broker needs a state directory of its own"
                    )
                }
                Some(_) => {}
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// Every member.
    ///
    /// # Errors
    /// An unreadable file.
    pub fn members(&self) -> anyhow::Result<Vec<Enrolled>> {
        let txn = self.database.begin_read()?;
        let table = txn.open_table(MEMBERS)?;
        let mut members = Vec::new();
        for entry in table.iter()? {
            let row: MemberRow = decode(entry?.1.value())?;
            if row.removed.is_none() {
                members.push(Enrolled {
                    certificate: row.certificate()?,
                    created: UnixTime::from_secs(row.created),
                    last_seen: UnixTime::from_secs(row.last_seen),
                });
            }
        }
        Ok(members)
    }

    /// Every member, for the broker.
    ///
    /// # Errors
    /// An unreadable file.
    pub fn directory(&self) -> anyhow::Result<Directory> {
        let mut directory = Directory::default();
        for member in self.members()? {
            let name = member.certificate.subject.uri.name.clone();
            if let Err(conflict) = directory.learn(member.certificate, member.last_seen) {
                tracing::warn!(%name, %conflict, "a stored member is left out");
            }
        }
        Ok(directory)
    }

    /// The revocation list in force, and its signed bytes; empty if there is none.
    ///
    /// # Errors
    /// An unreadable file or a list that the CA did not sign: better to stop than to let the revoked in.
    pub fn revocations(&self) -> anyhow::Result<(RevocationList, Vec<u8>)> {
        let txn = self.database.begin_read()?;
        let table = txn.open_table(META)?;
        let Some(signed) = table.get(META_REVOCATIONS)?.map(|value| value.value().to_vec()) else {
            return Ok((RevocationList::default(), Vec::new()));
        };
        let list =
            RevocationList::parse_signed(&signed, &self.anchor).context("the stored revocation list")?;
        Ok((list, signed))
    }

    /// Writes an invite down, and forgets those that expired long ago.
    ///
    /// # Errors
    /// An unwritable file.
    pub fn add_invite(&self, secret: &[u8; 32], grant: &Grant, now: UnixTime) -> anyhow::Result<()> {
        let row = InviteRow {
            name: grant.name.as_ref().map(ToString::to_string),
            groups: grant.groups.iter().map(ToString::to_string).collect(),
            member: grant.roles.member,
            relay: grant.roles.relay,
            created: now.secs(),
            expires: grant.expires.secs(),
            used: None,
        };
        let txn = self.database.begin_write()?;
        {
            let mut invites = txn.open_table(INVITES)?;
            let oldest = now.secs().saturating_sub(INVITE_KEPT.as_secs());
            invites.retain(|_, row| decode(row).is_ok_and(|row: InviteRow| row.expires >= oldest))?;
            invites.insert(hash(secret).as_slice(), encode(&row)?.as_slice())?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Enrols the machine that shows an invite's secret: checks and uses up the invite, assigns an address, signs and
    /// stores the certificate, all in one transaction. The same machine may ask again while the invite lives (its answer
    /// may have been lost) and gets the same certificate.
    ///
    /// # Errors
    /// A refusal, which is one and the same for an unknown, expired or used invite; or our own failure.
    pub fn redeem(
        &self,
        secret: &[u8; 32],
        request: &SigningRequest,
        holder: Option<&MemberName>,
        authority: &Authority,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Certificate, RedeemError> {
        let invalid = || {
            let text = "the invite is unknown, expired or used: ask for a new one (`ntcp-overlay invite`)";
            RedeemError::Refused(Refusal::InvalidInvite, text.to_owned())
        };
        let key = hash(secret);
        let txn = self.database.begin_write()?;
        let row = txn.open_table(INVITES)?.get(key.as_slice())?.map(|row| row.value().to_vec());
        let mut invite: InviteRow = decode(&row.ok_or_else(invalid)?)?;
        if invite.expires < now.secs() {
            return Err(invalid());
        }
        if let Some(used) = &invite.used {
            let certificate = certificate_from(used)?;
            let same = certificate.key == request.key && certificate.subject.wg == request.wg;
            return if same { Ok(certificate) } else { Err(invalid()) };
        }

        let name: MemberName = match &invite.name {
            Some(name) => name.parse()?,
            None => request.name.clone(),
        };
        if let Some(row) = read_member(&txn, &name)?.filter(|row| row.removed.is_none()) {
            let holder = row.certificate()?;
            if holder.key != request.key || holder.subject.wg != request.wg {
                let text = format!(
                    "the name {name} belongs to another machine: choose another with --name, or revoke that one first"
                );
                return Err(RedeemError::Refused(Refusal::NameTaken, text));
            }
        }
        // Nothing proves that a guest holds the WireGuard key that it names, and peers know each other by that key.
        if let Some(holder) = holder.filter(|holder| **holder != name) {
            let text = format!(
                "{holder} has the same WireGuard key: revoke that one first, or give this machine new keys (an empty state \
                 directory)"
            );
            return Err(RedeemError::Refused(Refusal::Forbidden, text));
        }
        let roles = Roles { member: invite.member, broker: false, relay: invite.relay };
        let addrs = if roles.member {
            let addr = assign(self.anchor.prefix, &name, &held(&txn)?, now).ok_or_else(|| {
                let text = format!("no address is left in {}", self.anchor.prefix);
                RedeemError::Refused(Refusal::NoAddressLeft, text)
            })?;
            Some(self.anchor.overlay_addrs(addr))
        } else {
            None
        };
        let subject = Subject {
            uri: MemberUri { network: self.anchor.network.clone(), name },
            roles,
            addrs,
            groups: invite.groups.iter().map(|group| group.parse()).collect::<Result<_, _>>()?,
            wg: request.wg,
        };
        let (from, until) = validity(now, lifetime);
        let certificate = authority.sign(&subject, &request.key, Serial::generate(), from, until)?;
        insert_member(&txn, &certificate, now)?;
        invite.used = Some(STANDARD.encode(&certificate.der));
        txn.open_table(INVITES)?.insert(key.as_slice(), encode(&invite)?.as_slice())?;
        txn.commit()?;
        Ok(certificate)
    }

    /// Signs and stores a fresh certificate for a member that is still one.
    ///
    /// # Errors
    /// An unwritable file, or a member that was removed meanwhile.
    pub fn renew(
        &self,
        subject: &Subject,
        key: &[u8; 32],
        authority: &Authority,
        lifetime: Duration,
        now: UnixTime,
    ) -> anyhow::Result<Certificate> {
        let (from, until) = validity(now, lifetime);
        let certificate = authority.sign(subject, key, Serial::generate(), from, until)?;
        let txn = self.database.begin_write()?;
        let row = read_member(&txn, &subject.uri.name)?.filter(|row| row.removed.is_none());
        let current = row.context("no longer a member")?.certificate()?;
        if !is_same_holder(&current, &certificate) {
            bail!("the name belongs to another machine by now");
        }
        insert_member(&txn, &certificate, now)?;
        txn.commit()?;
        Ok(certificate)
    }

    /// Writes down a member whose certificate was signed elsewhere.
    ///
    /// # Errors
    /// An unwritable file.
    pub fn remember(&self, certificate: &Certificate, now: UnixTime) -> anyhow::Result<()> {
        let txn = self.database.begin_write()?;
        insert_member(&txn, certificate, now)?;
        txn.commit()?;
        Ok(())
    }

    /// Writes down when a member was last seen. Not flushed: after a crash it may be older.
    ///
    /// # Errors
    /// An unwritable file.
    pub fn seen(&self, name: &MemberName, at: UnixTime) -> anyhow::Result<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::None)?;
        if let Some(mut row) = read_member(&txn, name)? {
            row.last_seen = at.secs();
            txn.open_table(MEMBERS)?.insert(name.as_str(), encode(&row)?.as_slice())?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Takes back every certificate of a member and gives its name and address free. Answers the new list and its
    /// signed bytes.
    ///
    /// # Errors
    /// If there is no such member, the list is full, or the file is unwritable.
    pub fn revoke(
        &self,
        name: &MemberName,
        authority: &Authority,
        now: UnixTime,
    ) -> anyhow::Result<(RevocationList, Vec<u8>)> {
        let (old, _) = self.revocations()?;
        let txn = self.database.begin_write()?;
        let row = read_member(&txn, name)?.filter(|row| row.removed.is_none());
        let current = row.with_context(|| format!("there is no member {name}"))?.certificate()?;
        let mut serials = vec![current.serial];
        let mut expired = Vec::new();
        for entry in txn.open_table(ISSUED)?.iter()? {
            let (serial, row) = entry?;
            let serial = Serial(serial.value().try_into().context("a damaged serial number")?);
            let row: IssuedRow = decode(row.value())?;
            match row {
                row if row.not_after < now.secs() => expired.push(serial),
                row if row.name == name.as_str() => serials.push(serial),
                _ => {}
            }
        }
        let kept = old.serials.iter().copied().filter(|serial| !expired.contains(serial));
        let list = old.next(now, kept.chain(serials))?;
        let signed = authority.sign_revocations(&list);
        put_revocations(&txn, &list, &signed, now)?;
        txn.commit()?;
        Ok((list, signed))
    }

    /// Puts a list into force that was signed elsewhere.
    ///
    /// # Errors
    /// If the CA did not sign it, it is not newer than the one in force, or the file is unwritable.
    pub fn import_revocations(&self, signed: &[u8], now: UnixTime) -> anyhow::Result<RevocationList> {
        let list = RevocationList::parse_signed(signed, &self.anchor).context("the revocation list")?;
        let (old, _) = self.revocations()?;
        if !list.supersedes(&old) {
            bail!(
                "version {} of the revocation list is not newer than version {}, which is in force: sign the new one on \
                 top of that",
                list.version,
                old.version
            );
        }
        let txn = self.database.begin_write()?;
        put_revocations(&txn, &list, signed, now)?;
        txn.commit()?;
        Ok(list)
    }
}

impl MemberRow {
    fn certificate(&self) -> anyhow::Result<Certificate> {
        certificate_from(&self.certificate)
    }
}

fn certificate_from(text: &str) -> anyhow::Result<Certificate> {
    let der = STANDARD.decode(text).context("a damaged certificate in the database")?;
    Certificate::parse(&der).context("a damaged certificate in the database")
}

fn read_member(txn: &WriteTransaction, name: &MemberName) -> anyhow::Result<Option<MemberRow>> {
    let row = txn.open_table(MEMBERS)?.get(name.as_str())?.map(|row| row.value().to_vec());
    row.map(|row| decode(&row)).transpose()
}

/// Writes a certificate's holder, address and serial; an older one than is known changes only the list of serials.
fn insert_member(txn: &WriteTransaction, certificate: &Certificate, now: UnixTime) -> anyhow::Result<()> {
    let name = &certificate.subject.uri.name;
    let old = read_member(txn, name)?;
    let alive = old.as_ref().filter(|row| row.removed.is_none());
    let known = alive.map(MemberRow::certificate).transpose()?;
    if known.is_none_or(|known| known.not_before <= certificate.not_before) {
        let row = MemberRow {
            certificate: STANDARD.encode(&certificate.der),
            created: alive.map_or_else(|| now.secs(), |row| row.created),
            last_seen: old.as_ref().map_or(0, |row| row.last_seen),
            removed: None,
        };
        txn.open_table(MEMBERS)?.insert(name.as_str(), encode(&row)?.as_slice())?;
        if let Some(addrs) = certificate.subject.addrs {
            let row = AddressRow { name: name.to_string(), released: None };
            txn.open_table(ADDRESSES)?.insert(u32::from(addrs.v4), encode(&row)?.as_slice())?;
        }
    }
    let issued = IssuedRow { name: name.to_string(), not_after: certificate.not_after.secs() };
    txn.open_table(ISSUED)?.insert(certificate.serial.0.as_slice(), encode(&issued)?.as_slice())?;
    Ok(())
}

fn held(txn: &WriteTransaction) -> anyhow::Result<Vec<Held>> {
    let mut held = Vec::new();
    for entry in txn.open_table(ADDRESSES)?.iter()? {
        let (addr, row) = entry?;
        let row: AddressRow = decode(row.value())?;
        held.push(Held {
            addr: Ipv4Addr::from(addr.value()),
            name: row.name.parse()?,
            released: row.released.map(UnixTime::from_secs),
        });
    }
    Ok(held)
}

/// Stores a list, and removes the members whose current certificate is on it.
fn put_revocations(
    txn: &WriteTransaction,
    list: &RevocationList,
    signed: &[u8],
    now: UnixTime,
) -> anyhow::Result<()> {
    txn.open_table(META)?.insert(META_REVOCATIONS, signed)?;
    let mut removed = Vec::new();
    let mut members = txn.open_table(MEMBERS)?;
    for entry in members.iter()? {
        let (name, row) = entry?;
        let row: MemberRow = decode(row.value())?;
        let certificate = row.certificate()?;
        if row.removed.is_none() && list.contains(&certificate.serial) {
            removed.push((name.value().to_owned(), row, certificate));
        }
    }
    let mut addresses = txn.open_table(ADDRESSES)?;
    for (name, mut row, certificate) in removed {
        row.removed = Some(now.secs());
        members.insert(name.as_str(), encode(&row)?.as_slice())?;
        if let Some(addrs) = certificate.subject.addrs {
            let row = AddressRow { name, released: Some(now.secs()) };
            addresses.insert(u32::from(addrs.v4), encode(&row)?.as_slice())?;
        }
    }
    Ok(())
}

fn sync_directory(of: &Path) -> std::io::Result<()> {
    let dir = of.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::File::open(dir)?.sync_all()
}

fn hash(secret: &[u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret).as_ref());
    out
}

fn encode<T: Serialize>(row: &T) -> anyhow::Result<Vec<u8>> {
    serde_json::to_vec(row).context("a row of the database cannot be written")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes)
        .context("a row of the database is damaged, or written by a newer ntcp-overlay")
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
