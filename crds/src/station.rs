//! MAC addresses of single network interfaces (stations in IEEE 802).

use pnet_base::MacAddr;

/// Whether `mac` can be the address of one network interface: neither a group address nor all zeros.
pub fn is_station(mac: MacAddr) -> bool {
    mac.is_unicast() && !mac.is_zero()
}

/// Reads the MAC address of one network interface, such as `02:00:00:00:00:01`. `None` for any other text.
pub fn parse_station(text: &str) -> Option<MacAddr> {
    let mut parts = text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?);
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        *byte = parts.next()??;
    }
    let mac = MacAddr::from(bytes);
    (parts.next().is_none() && is_station(mac)).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_single_stations_are_read() {
        let mac = MacAddr(2, 0, 0x5e, 0x10, 0xff, 1);
        assert_eq!(parse_station(&mac.to_string()), Some(mac));
        for text in
            ["", "02:00:5e:10:ff", "02:00:5e:10:ff:1", "02:00:5e:10:ff:01:02", "01:00:5e:00:00:01", "00:00:00:00:00:00"]
        {
            assert_eq!(parse_station(text), None, "{text}");
        }
    }
}
