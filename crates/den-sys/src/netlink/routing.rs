//! What a namespace needs that ends every flow itself: packets with a mark are its own, whatever
//! their address. Source: rtnetlink(7), linux/fib_rules.h, ip-rule(8).

use std::net::Ipv4Addr;

use super::{
    AF_INET, Batch, IFF_UP, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REPLACE, RTA_DST, RTA_OIF, RTM_NEWLINK, RTM_NEWROUTE, RTPROT_BOOT, VETH_INFO_PEER,
};

const RTM_NEWRULE: u16 = 32;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const RTA_TABLE: u16 = 15;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
const RT_SCOPE_LINK: u8 = 253;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;

impl Batch {
    /// Adds: packets with this mark are routed by this table. `EEXIST` where the rule is there.
    pub fn rule_for_mark(mut self, mark: u32, table: u8, priority: u32) -> Self {
        let request = self.begin("RTM_NEWRULE", RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL);
        // struct fib_rule_hdr: family, lengths of destination and source, tos, table, 2 reserved, action, flags.
        request.bytes.extend([AF_INET, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL]);
        request.bytes.extend([0; 4]);
        request.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
        request.attribute(FRA_FWMARK, &mark.to_ne_bytes());
        request.attribute(FRA_FWMASK, &u32::MAX.to_ne_bytes());
        request.attribute(FRA_TABLE, &u32::from(table).to_ne_bytes());
        self
    }

    /// Adds: in this table every address is the namespace's own.
    pub fn all_local(mut self, table: u8, loopback: u32) -> Self {
        let request = self.begin("RTM_NEWROUTE local", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        request.bytes.extend([AF_INET, 0, 0, 0, table, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL]);
        request.bytes.extend([0; 4]);
        request.attribute(RTA_TABLE, &u32::from(table).to_ne_bytes());
        request.attribute(RTA_OIF, &loopback.to_ne_bytes());
        self
    }

    /// Adds: this address, in the main table, by the interface; what else leads there stays.
    pub fn route_to(mut self, index: u32, address: Ipv4Addr) -> Self {
        let request = self.begin("RTM_NEWROUTE", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        request.bytes.extend([AF_INET, 32, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_LINK, RTN_UNICAST]);
        request.bytes.extend([0; 4]);
        request.attribute(RTA_DST, &address.octets());
        request.attribute(RTA_OIF, &index.to_ne_bytes());
        self
    }

    /// Adds: a veth pair with both ends here, up, with these names and indexes. `EEXIST` where it is.
    pub fn veth_here(mut self, ends: [(&str, u32); 2]) -> Self {
        let request = self.begin("RTM_NEWLINK veth", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        request.interface(ends[0].1, IFF_UP, IFF_UP);
        request.text(IFLA_IFNAME, ends[0].0);
        let link = request.open(IFLA_LINKINFO);
        request.attribute(IFLA_INFO_KIND, b"veth");
        let data = request.open(IFLA_INFO_DATA);
        let peer = request.open(VETH_INFO_PEER);
        // The other end is made first, and cannot come up alone.
        request.interface(ends[1].1, 0, 0);
        request.text(IFLA_IFNAME, ends[1].0);
        request.close(peer);
        request.close(data);
        request.close(link);
        self.set_up(ends[1].1)
    }
}
