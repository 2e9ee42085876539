//! Identities: one certificate authority per cluster, a certificate for each component, and kubeconfigs with them.
//!
//! Pure except for random keys.

use anyhow::Result;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// A certificate and its key, both PEM.
pub struct Identity {
    pub certificate: String,
    /// The private key (PKCS #8).
    pub key: String,
}

/// The certificate authority of a cluster.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Creates an authority with a new key.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "landfall-lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// Issues an identity for `user` in `group` (Kubernetes reads CN and O), which is also valid as a server at `names`
    /// (DNS names and addresses).
    pub fn identity(&self, user: &str, group: &str, names: &[String]) -> Result<Identity> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }

    /// A self-contained kubeconfig for `user` in `group` at `server`.
    pub fn kubeconfig(&self, server: &str, user: &str, group: &str) -> Result<String> {
        let identity = self.identity(user, group, &[])?;
        let credentials = format!(
            "client-certificate-data: {}, client-key-data: {}",
            base64(&identity.certificate)?,
            base64(&identity.key)?
        );
        kubeconfig(server, &self.certificate(), &credentials)
    }
}

/// A kubeconfig with a bearer token, of a ServiceAccount for example.
pub fn kubeconfig_with_token(server: &str, authority: &str, token: &str) -> Result<String> {
    kubeconfig(server, authority, &format!("token: {token}"))
}

fn kubeconfig(server: &str, authority: &str, credentials: &str) -> Result<String> {
    let authority = base64(authority)?;
    Ok(format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: lab, cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}}}]\n\
         users: [{{name: lab, user: {{{credentials}}}}}]\n\
         contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n\
         current-context: lab\n"
    ))
}

/// Quoted base64, as in a Secret's data.
fn base64(text: &str) -> Result<String> {
    Ok(serde_json::to_string(&ByteString(text.as_bytes().to_vec()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_can_read_the_kubeconfig() {
        let authority = Authority::new().expect("authority");
        let text = authority.kubeconfig("https://127.0.0.1:1", "user", "group").expect("kubeconfig");
        let config = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
        assert_eq!(config.current_context.as_deref(), Some("lab"));
        assert!(config.auth_infos[0].auth_info.as_ref().is_some_and(|user| user.client_certificate_data.is_some()));
    }
}
