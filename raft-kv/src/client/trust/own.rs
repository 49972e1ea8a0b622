//! A root that its owner brings: its files, and the last look at it before a cluster rests on it.
//!
//! What certificates must say is in `pki`; here whole chains are put to the verifier that listeners and
//! diallers use. What it would not accept is never proposed.

use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;

use super::authority::CA_KEY;
use crate::error::Refusal;
use crate::pki::{self, Keyring, OwnRoot};
use crate::types::Authority;

/// A file is not read beyond this.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Reads a root from PEM files and looks at it as far as that is possible away from the cluster. `cert`
/// holds the certificate that signs, then each one's issuer, the root last; `key` is that of the first
/// one, nothing where it is kept outside; `cross` is that key as certified by the root in force, needed
/// only where the cluster can't make it.
///
/// # Errors
/// [`Refusal::Invalid`] for a file that can't be read, [`Refusal::BadCertificate`] naming what is wrong
/// inside and the way out.
pub fn read_own_root(cert: &Path, key: Option<&Path>, cross: Option<&Path>) -> Result<OwnRoot, Refusal> {
    let read = |path: &Path| {
        let why = |why: String| Refusal::invalid(format!("file {}", path.display()), why);
        let file = std::fs::File::open(path).map_err(|error| why(error.to_string()))?;
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| why(error.to_string()))?;
        if text.len() as u64 > MAX_FILE_BYTES { Err(why("it is too large".into())) } else { Ok(text) }
    };
    let (key, cross) = (key.map(read).transpose()?, cross.map(read).transpose()?);
    let own = pki::own_root_from_pem(&read(cert)?, key.as_deref(), cross.as_deref())?;
    pki::vet(&own, SystemTime::now())?;
    Ok(own)
}

/// The authority that `own` makes, vetted; it has no cross certificate yet.
pub(in crate::client) fn authority_of_own(own: &OwnRoot, keyring: &Keyring) -> Result<Authority, Refusal> {
    pki::vet(own, SystemTime::now())?;
    let signing: &Bytes = own.via.first().unwrap_or(&own.root);
    Ok(Authority {
        digest: pki::RootDigest::of(&own.root),
        signer: pki::key_of(signing)?,
        root: own.root.clone(),
        via: own.via.clone(),
        key: own.key.as_ref().map(|key| keyring.seal(CA_KEY, key)),
        cross: None,
    })
}
