//! Certificates for the way to the Collector.
//!
//! They are read with the other settings, not when they are needed: an nginx worker may
//! no longer read a key that its master could.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Whom to trust, and who we are.
#[derive(Clone, Default)]
pub struct Tls {
    trusted: Option<Arc<RootCertStore>>,
    identity: Option<Identity>,
}

/// A client certificate with its key, as PEM text that has been found good.
#[derive(Clone, PartialEq, Eq)]
struct Identity {
    certificates: Arc<[u8]>,
    key: Arc<[u8]>,
}

/// Which file cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of trusted certificates.
    #[error(transparent)]
    Trusted(FileError),
    /// The client's certificate.
    #[error(transparent)]
    Certificate(FileError),
    /// The client's key.
    #[error(transparent)]
    Key(FileError),
}

/// Why a PEM file cannot be used; the words continue its name.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read ({0})")]
    Read(#[from] io::Error),
    /// There is no certificate in it.
    #[error("has no certificate in PEM form in it")]
    NoCertificate,
    /// There is a certificate in it that cannot be used.
    #[error("has a certificate in it that cannot be used ({0})")]
    BadCertificate(rustls::Error),
    /// There is no key in it.
    #[error("has no private key in PEM form in it (one with a pass phrase cannot be used)")]
    NoKey,
    /// There is a key in it that cannot be used.
    #[error("has a private key in it that cannot be used ({0})")]
    BadKey(rustls::Error),
    /// The key is another certificate's.
    #[error("is not the key of the client certificate")]
    OtherKey,
}

/// Why there is nobody to trust.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine has no certificates of authorities that could be trusted; \
     OTEL_EXPORTER_OTLP_CERTIFICATE can name a file of them"
)]
pub struct NobodyTrusted;

impl Tls {
    /// Trusts the certificates in this file and no others.
    pub fn trust(&mut self, file: &Path) -> Result<(), TlsError> {
        let roots = read_roots(file).map_err(TlsError::Trusted)?;
        self.trusted = Some(Arc::new(roots));
        Ok(())
    }

    /// Shows the Collector this certificate, whose private key is in the second file.
    pub fn identify(&mut self, certificate: &Path, key: &Path) -> Result<(), TlsError> {
        let (certificates, chain) = read_chain(certificate).map_err(TlsError::Certificate)?;
        let (key, private) = read_key(key).map_err(TlsError::Key)?;
        builder(Arc::new(RootCertStore::empty()))
            .and_then(|builder| builder.with_client_auth_cert(chain, private))
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TlsError::Key(FileError::OtherKey),
                rustls::Error::InvalidCertificate(_) => {
                    TlsError::Certificate(FileError::BadCertificate(error))
                }
                _ => TlsError::Key(FileError::BadKey(error)),
            })?;
        self.identity = Some(Identity { certificates, key });
        Ok(())
    }

    /// Nothing has been set: the machine's authorities are trusted, and nothing is
    /// shown.
    pub fn is_default(&self) -> bool {
        self.trusted.is_none() && self.identity.is_none()
    }

    /// Takes over what the other one has set.
    pub fn override_with(&mut self, other: &Self) {
        if other.trusted.is_some() {
            self.trusted.clone_from(&other.trusted);
        }
        if other.identity.is_some() {
            self.identity.clone_from(&other.identity);
        }
    }

    /// Who is trusted: those of the file, else the machine's authorities.
    pub(crate) fn roots(&self) -> Result<Arc<RootCertStore>, NobodyTrusted> {
        if let Some(trusted) = &self.trusted {
            return Ok(Arc::clone(trusted));
        }
        let mut roots = RootCertStore::empty();
        // Single ones that cannot be read are nobody's loss while there are others.
        let (added, _) =
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 {
            return Err(NobodyTrusted);
        }
        Ok(Arc::new(roots))
    }

    /// Certificate chain and key as PEM text.
    pub(crate) fn identity(&self) -> Option<(&[u8], &[u8])> {
        let identity = self.identity.as_ref()?;
        Some((&identity.certificates, &identity.key))
    }

    /// All of it for a client.
    pub(crate) fn client_config(
        &self,
        roots: Arc<RootCertStore>,
    ) -> Result<ClientConfig, rustls::Error> {
        let builder = builder(roots)?;
        let Some((certificates, key)) = self.identity() else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = CertificateDer::pem_slice_iter(certificates)
            .flatten()
            .collect();
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        builder.with_client_auth_cert(chain, key)
    }
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(roots: Arc<RootCertStore>) -> Result<Builder, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots))
}

fn read_roots(file: &Path) -> Result<RootCertStore, FileError> {
    let (_, chain) = read_chain(file)?;
    let mut roots = RootCertStore::empty();
    let added = chain.into_iter().map(|certificate| roots.add(certificate));
    // A bundle may hold some of a kind that nobody can use any more.
    let first_bad = added
        .filter_map(Result::err)
        .fold(None, |first, e| first.or(Some(e)));
    match first_bad {
        Some(error) if roots.is_empty() => Err(FileError::BadCertificate(error)),
        _ => Ok(roots),
    }
}

type Chain = (Arc<[u8]>, Vec<CertificateDer<'static>>);

fn read_chain(file: &Path) -> Result<Chain, FileError> {
    let text = std::fs::read(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|_| FileError::NoCertificate)?;
    if chain.is_empty() {
        return Err(FileError::NoCertificate);
    }
    Ok((text.into(), chain))
}

fn read_key(file: &Path) -> Result<(Arc<[u8]>, PrivateKeyDer<'static>), FileError> {
    let text = std::fs::read(file)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| FileError::NoKey)?;
    Ok((text.into(), key))
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        let roots = |tls: &Self| tls.trusted.as_ref().map(|roots| roots.roots.clone());
        self.identity == other.identity && roots(self) == roots(other)
    }
}

impl Eq for Tls {}

impl fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("trusted", &self.trusted.as_ref().map(|roots| roots.len()))
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
