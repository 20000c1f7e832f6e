//! OpenSSL's words for what goes wrong in handshakes, where it has some for the same.

use std::io;

use rustls::{AlertDescription, Error};

/// What the log says of a handshake that failed, and the system's part in it.
pub(crate) fn failed(error: io::Error) -> (String, Option<io::Error>) {
    let gone = || "peer closed connection in SSL handshake".to_owned();
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return (gone(), None);
    }
    if error.raw_os_error().is_some() {
        return (gone(), Some(error));
    }
    let reason = match error.downcast::<Error>() {
        Ok(Error::AlertReceived(AlertDescription::CloseNotify)) => return (gone(), None),
        Ok(error) => reason(&error),
        Err(error) => error.to_string(),
    };
    (format!("SSL_do_handshake() failed (SSL: {reason})"), None)
}

/// What went wrong in a handshake.
pub(super) fn reason(error: &Error) -> String {
    use rustls::PeerIncompatible as P;
    let words = match error {
        Error::NoApplicationProtocol => "error:0A0000EB:SSL routines::no application protocol",
        Error::PeerIncompatible(P::NoCipherSuitesInCommon) => "error:0A0000C1:SSL routines::no shared cipher",
        Error::PeerIncompatible(P::NoKxGroupsInCommon) => {
            "error:0A000065:SSL routines::no suitable key share"
        }
        Error::PeerIncompatible(P::NoSignatureSchemesInCommon) => {
            "error:0A000076:SSL routines::no suitable signature algorithm"
        }
        Error::PeerIncompatible(
            P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled
            | P::Tls13RequiredForQuic
            | P::SupportedVersionsExtensionRequired,
        ) => "error:0A000102:SSL routines::unsupported protocol",
        Error::InvalidMessage(_) => "error:0A00010B:SSL routines::wrong version number",
        Error::DecryptError => "error:0A000119:SSL routines::decryption failed or bad record mac",
        Error::AlertReceived(alert) => return alert_reason(*alert),
        _ => return error.to_string(),
    };
    words.to_owned()
}

fn alert_reason(alert: AlertDescription) -> String {
    let number = u8::from(alert);
    let name = match alert {
        AlertDescription::BadCertificate => "sslv3 alert bad certificate",
        AlertDescription::UnsupportedCertificate => "sslv3 alert unsupported certificate",
        AlertDescription::CertificateRevoked => "sslv3 alert certificate revoked",
        AlertDescription::CertificateExpired => "sslv3 alert certificate expired",
        AlertDescription::CertificateUnknown => "sslv3 alert certificate unknown",
        AlertDescription::HandshakeFailure => "sslv3 alert handshake failure",
        AlertDescription::IllegalParameter => "sslv3 alert illegal parameter",
        AlertDescription::UnexpectedMessage => "sslv3 alert unexpected message",
        AlertDescription::BadRecordMac => "sslv3 alert bad record mac",
        AlertDescription::UnknownCA => "tlsv1 alert unknown ca",
        AlertDescription::AccessDenied => "tlsv1 alert access denied",
        AlertDescription::DecodeError => "tlsv1 alert decode error",
        AlertDescription::DecryptError => "tlsv1 alert decrypt error",
        AlertDescription::ProtocolVersion => "tlsv1 alert protocol version",
        AlertDescription::InternalError => "tlsv1 alert internal error",
        AlertDescription::UserCanceled => "tlsv1 alert user cancelled",
        AlertDescription::RecordOverflow => "tlsv1 alert record overflow",
        AlertDescription::InsufficientSecurity => "tlsv1 alert insufficient security",
        AlertDescription::InappropriateFallback => "tlsv1 alert inappropriate fallback",
        AlertDescription::NoRenegotiation => "tlsv1 alert no renegotiation",
        AlertDescription::NoApplicationProtocol => "tlsv1 alert no application protocol",
        AlertDescription::UnsupportedExtension => "tlsv1 unsupported extension",
        AlertDescription::UnrecognisedName => "tlsv1 unrecognized name",
        AlertDescription::MissingExtension => "tlsv13 alert missing extension",
        AlertDescription::CertificateRequired => "tlsv13 alert certificate required",
        _ => return format!("received fatal alert: {alert:?}:SSL alert number {number}"),
    };
    // OpenSSL numbers these reasons by 1000 more than the alert.
    format!("error:0A{:06X}:SSL routines::{name}:SSL alert number {number}", 1000 + u32::from(number))
}
