//! EG04: the address of an allowed host, without its name: denied. Only an address that the gate
//! itself has answered with (`dns=real`) stands for a name.

use den_testkit::Site;

use crate::world::{World, answered, canary, refused};

#[test]
fn an_address_is_no_name() {
    let world = World::guarded(&["good.test", "echo.test dns=real"]);
    let secret = canary();
    let seen = world.run(
        "c",
        &format!(
            "say(**get('{{good}}', 'good.test', '/{secret}'))\n\
             say(**tls('{{good}}', 'good.test', path='/{secret}'))\n\
             say(**fate('{{good}}', 5432, b'{secret}'))\n\
             say(**get('{{evil}}', 'good.test', '/{secret}'))\n\
             say(**get('{{echo}}', 'echo.test', '/{secret}'))"
        ),
    );
    seen.iter().for_each(refused);
    for target in ["{good}:80", "{good}:443", "{good}:5432", "{evil}:80", "{echo}:80"] {
        world.denied("c", "open", "ip_literal", target);
    }
    for site in [Site::Good, Site::Evil, Site::Echo] {
        world.untouched(site);
    }
    world.no_leak(&secret);

    // By name it works: one with a virtual address, one with its own, which stands for the name from then on.
    let seen = world.run(
        "c",
        "say(**get(address('good.test'), 'good.test'))\n\
         a = address('echo.test')\nsay(a=a)\nsay(**get(a, 'echo.test'))\nsay(**tls(a, 'echo.test'))\n\
         say(**get('{good}', 'echo.test'))\nsay(**get('{echo}', 'good.test'))",
    );
    answered(&seen[0]);
    assert_eq!(seen[1]["a"], world.net.at(Site::Echo).to_string());
    answered(&seen[2]);
    answered(&seen[3]);
    refused(&seen[4]);
    crate::world::status(&seen[5], 421);
    // An address with a rule of its own needs no name; its neighbour does.
    let rule = format!("{}:5432", world.net.at(Site::Mirror));
    world.house.den(&["net", "c", "allow", &rule]).ok();
    let seen = world.run(
        "c",
        "say(**fate('{mirror}', 5432, b'hello', enough=b'hello'))\nsay(**fate('{mirror}', 6379, b'x'))\nsay(**fate('{good}', 5432, b'x'))",
    );
    assert_eq!(seen[0]["end"], "enough", "{seen:?}");
    refused(&seen[1]);
    refused(&seen[2]);
}
