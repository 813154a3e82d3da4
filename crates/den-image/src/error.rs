//! Why an image did not arrive, is not there or may not go.

use std::{io, path::PathBuf};

use den_model::{Bytes, ImageName};

/// What went wrong. [`ImageError::code`] is a contract; messages are not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image has this name.
    #[error("no image is named `{0}`")]
    NotFound(ImageName),
    /// No image has this digest.
    #[error("no image has the digest `{0}`")]
    NotFoundDigest(String),
    /// Computers still stand on it.
    #[error("the image `{name}` is in use by a computer")]
    InUse {
        /// The name that was to go.
        name: ImageName,
    },
    /// A layer, manifest or archive that no honest tool makes.
    #[error("the image is broken or hostile: {0}")]
    BadLayer(String),
    /// The bytes are not those that were promised.
    #[error("{what} should have the digest {expected} but has {found}")]
    DigestMismatch {
        /// Which bytes.
        what: String,
        /// As promised.
        expected: String,
        /// As computed.
        found: String,
    },
    /// Beyond one of the limits.
    #[error("the image has more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit in words, with its unit.
        limit: String,
    },
    /// Well formed, but nothing that we can use.
    #[error("the image cannot be used here: {0}")]
    Unsupported(String),
    /// The source of an import is not there or cannot be read.
    #[error("cannot read {}", path.display())]
    Source {
        /// What was to be imported.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A stream that was to be imported broke off.
    #[error("the image's bytes cannot be read")]
    Stream(#[source] io::Error),
    /// What was given is no reference such as `debian:bookworm`.
    #[error("`{reference}` is no image reference: {reason}")]
    BadReference {
        /// What was given.
        reference: String,
        /// Why not.
        reason: String,
    },
    /// No answer, or one that was cut again and again.
    #[error("the registry `{registry}` cannot be reached: {reason}")]
    RegistryUnreachable {
        /// Its host and port.
        registry: String,
        /// The innermost cause.
        reason: String,
    },
    /// It answered with a no.
    #[error("the registry `{registry}` refuses: {reason}")]
    RegistryRefused {
        /// Its host and port.
        registry: String,
        /// In its words.
        reason: String,
    },
    /// It does not have that image.
    #[error("the registry `{registry}` has no `{reference}`")]
    RegistryNotFound {
        /// Its host and port.
        registry: String,
        /// What was asked for.
        reference: String,
    },
    /// A build that its tool gave up.
    #[error("building `{name}` ended with {status}: {last}")]
    BuildFailed {
        /// The image that was to be.
        name: ImageName,
        /// How the tool ended.
        status: String,
        /// The tool's last line that says something.
        last: String,
    },
    /// The build asks for something that is not possible.
    #[error("cannot build `{name}`: {reason}")]
    BuildRefused {
        /// The image that was to be.
        name: ImageName,
        /// What stands in the way.
        reason: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Neither mmdebstrap nor debootstrap.
    #[error("building an image needs `mmdebstrap` or `debootstrap`, and neither is installed")]
    BuildToolMissing,
    /// The store's own files.
    #[error("{call} {}", path.display())]
    Storage {
        /// What was being done, such as `cannot create`.
        call: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl ImageError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) | Self::NotFoundDigest(_) => "image_not_found",
            Self::InUse { .. } => "image_in_use",
            Self::BadLayer(_) => "image_bad_layer",
            Self::DigestMismatch { .. } => "image_digest_mismatch",
            Self::TooLarge { .. } => "image_too_large",
            Self::Unsupported(_) => "image_unsupported",
            Self::Source { .. } | Self::Stream(_) => "image_source_unreadable",
            Self::BadReference { .. } => "image_bad_reference",
            Self::RegistryUnreachable { .. } => "registry_unreachable",
            Self::RegistryRefused { .. } => "registry_refused",
            Self::RegistryNotFound { .. } => "registry_not_found",
            Self::BuildFailed { .. } => "build_failed",
            Self::BuildRefused { .. } => "build_refused",
            Self::BuildToolMissing => "build_tool_missing",
            Self::Storage { source, .. } if is_full(source) => "storage_full",
            Self::Storage { .. } => "storage_io",
        }
    }

    /// What to do next, where we know.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound(name) if name.as_str() == "base" => "build it with `den image build base`".to_owned(),
            Self::NotFound(name) => format!(
                "`den image ls` lists what is here; get one with `den image pull {name}`, or without a registry \
                 with `den image import` or `den image build --from debian:bookworm`"
            ),
            Self::NotFoundDigest(_) => "`den image ls` lists what is here".to_owned(),
            Self::InUse { .. } => "remove its computers first: `den ls` shows each one's image".to_owned(),
            Self::RegistryUnreachable { .. } => {
                "without a registry, use `den image import FILE` or `den image build --from debian:bookworm`".to_owned()
            }
            Self::RegistryRefused { .. } => "log in, so that ~/.docker/config.json has the registry".to_owned(),
            Self::BuildRefused { hint, .. } => (*hint).to_owned(),
            Self::BuildToolMissing => "run `apt-get install mmdebstrap`".to_owned(),
            Self::DigestMismatch { .. } => "try again; if it happens again, the source is broken".to_owned(),
            Self::Storage { source, .. } if is_full(source) => {
                "free disk space, for example with `den image rm`".to_owned()
            }
            _ => return None,
        })
    }

    /// Whether the same request may succeed later without a change.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::RegistryUnreachable { .. } | Self::DigestMismatch { .. } | Self::Storage { .. })
    }

    pub(crate) fn too_many_bytes(what: &'static str, limit: Bytes) -> Self {
        Self::TooLarge { what, limit: limit.to_string() }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Names the call and the path of an I/O error.
pub(crate) trait At<T> {
    /// `call` reads as the beginning of a sentence that the path ends.
    fn at(self, call: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, call: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Storage { call, path: path.into(), source: error.into() })
    }
}
