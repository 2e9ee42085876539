//! What a person is shown of a ruleset that nobody has programmed.

mod sample;

use crds::Protocol::{Tcp, Udp};
use dataplane::Snapshot;
use dataplane::nft::text::text;
use dataplane::ruleset::ruleset;
use sample::{NODE, ready, service, snapshot};

#[test]
fn each_element_is_a_line_as_nft_prints_it() {
    let web = service("web")
        .sticky(60)
        .holds("192.0.2.10")
        .port("http", Tcp, 80)
        .slice(&[("http", Tcp, 8080)], [ready("10.244.1.5", NODE), ready("10.244.2.5", "n2")]);
    let closed = service("closed")
        .holds("2001:db8::10")
        .port("dns", Udp, 53)
        .only_from(&["fd00::/8", "2001:db8::7/128"])
        .slice(&[("dns", Udp, 5353)], [ready("2001:db8:244:2::5", "n2")]);
    let empty = service("empty").holds("192.0.2.12").port("", Tcp, 80);
    let pods = ["10.244.1.0/24", "10.245.0.0/25", "10.245.0.128/26"];
    let pod_ranges = pods.map(|net| net.parse().expect("a range")).to_vec();
    let shown = text(&ruleset(&Snapshot { pod_ranges, ..snapshot([web, closed, empty]) }));
    // The chains that are always there are left out here.
    let always = |line: &&str| !line.starts_with("\tchain ") || line.contains("pick-") || line.contains("remember-");
    let shown: Vec<&str> = shown.lines().filter(always).collect();
    let expected = "\
table ip landfall {
	set addresses { # every lb_ip
		192.0.2.10
		192.0.2.12
	}
	set pods { # where this node's pods have their addresses from
		10.244.1.0/24
		10.245.0.0-10.245.0.191
	}
	map services { # what is served, and by how many endpoints
		192.0.2.10 . tcp . 80 : goto sticky-60-pick-2
	}
	map refused { # what has no endpoint anywhere
		192.0.2.12 . tcp . 80 : goto refuse
	}
	map endpoints { # where packets are sent to
		192.0.2.10 . tcp . 80 . 0 : 10.244.1.5 . 8080
		192.0.2.10 . tcp . 80 . 1 : 10.244.2.5 . 8080
	}
	map remember { # whose clients stay with their endpoints, and for how long
		192.0.2.10 . tcp . 80 : goto remember-60
	}
	set local { # endpoints on this node, which see the client's address
		192.0.2.10 . 10.244.1.5
	}
	set hairpin { # endpoints that call themselves
		192.0.2.10 . 10.244.1.5 . 10.244.1.5
	}
	chain sticky-60-pick-2 { }
	chain remember-60 { }
}
table ip6 landfall {
	set addresses { # every lb_ip
		2001:db8::10
	}
	map services { # what is served, and by how many endpoints
		2001:db8::10 . udp . 53 : goto restricted-pick-1
	}
	set sources { # who may use what not everybody may
		2001:db8::10 . udp . 53 . 2001:db8::7
		2001:db8::10 . udp . 53 . fd00::/8
	}
	map endpoints { # where packets are sent to
		2001:db8::10 . udp . 53 . 0 : 2001:db8:244:2::5 . 5353
	}
	chain restricted-pick-1 { }
}";
    assert_eq!(shown.join("\n"), expected);
    assert_eq!(text(&ruleset(&snapshot([]))), "", "no table where there is nothing to do");
}
