//! `desktop`: a screen that commands draw on and read, and what shows it in a browser elsewhere.
//!
//! ```text
//! Sandbox.create ─► Xvfb :0 ─► startxfce4           xdotool, scrot, xrandr, gtk-launch, xdg-open: commands all
//! stream.start   ─► x11vnc :5900 ◄── websockify :6080 ◄══ WebSocket ══ /opt/noVNC/vnc.html
//! ```
//!
//! The SDK begins all of it by commands of its own: nothing of it is a service, and there is no start command.

use serde_json::Value;

use super::template::{apt_install, as_root};

/// The screen, its desktop with a terminal, files, an editor and a browser, and all that the SDK calls.
const PACKAGES: &str = "xvfb x11-utils x11-xserver-utils xfce4 xfce4-terminal mousepad adwaita-icon-theme \
                        fonts-dejavu-core firefox-esr dbus-x11 xdg-utils libgtk-3-bin xdotool scrot x11vnc \
                        python3-websockify net-tools procps";

/// Puts noVNC where the SDK looks for it. The package is taken apart rather than installed: it wants fifty more, those
/// of OpenStack's console, of which nothing is called here.
const NOVNC: &str = r#"
set -e
place=$(mktemp -d)
cd "$place"
apt-get -qq update
apt-get -qq -o APT::Sandbox::User=root download novnc
dpkg-deb -x novnc_*.deb .
[ -x usr/share/novnc/utils/novnc_proxy ] || { echo "its novnc is too old: it has no novnc_proxy" >&2; exit 1; }
rm -rf /opt/noVNC
mv usr/share/novnc /opt/noVNC
rm -r "$place"
"#;

/// Has the browser show what it is asked for, and no pages and questions of its own. `--sync`, which the SDK moves the
/// pointer with, has Debian 12's xdotool wait for 15 s where the pointer is there already; without it the pointer has
/// moved as well when xdotool ends.
const SETTLE: &str = r#"
set -e
mkdir -p /etc/firefox/policies
cat >/etc/firefox/policies/policies.json <<'end'
{"policies": {"DisableTelemetry": true, "DontCheckDefaultBrowser": true, "OverrideFirstRunPage": ""}}
end
cat >/usr/local/bin/xdotool <<'end'
#!/bin/sh
# As `den e2b template desktop` has it: xdotool waits 15 s with --sync where the pointer is there already.
if [ "$1 $2" = "mousemove --sync" ]; then
    shift 2
    set -- mousemove "$@"
fi
exec /usr/bin/xdotool "$@"
end
chmod 755 /usr/local/bin/xdotool
"#;

/// What makes it.
pub fn steps() -> Vec<Value> {
    vec![as_root(&apt_install(PACKAGES)), as_root(NOVNC), as_root(SETTLE)]
}
