#!/bin/sh
# serve.sh SERVER PORT FOLDER STATE: runs one of Debian's mail servers, unpacked into FOLDER by `make test-mail`, on
# 127.0.0.1:PORT until it is ended; STATE is a folder that everybody may read, with certificate.pem and key.pem.
# Over TLS a client may log in as pulsa with the password "right".
# In a mount namespace of its own, in which the server finds its files and users: nothing is installed. Needs root.
set -eu
server=$1 port=$2 folder=$3 state=$4
configure() { sed "s|PORT|$port|g; s|STATE|$state|g" "$(dirname "$0")/$1"; }
for file in passwd group; do cp "/etc/$file" "$state/$file"; done
cat >> "$state/passwd" << 'PASSWD'
Debian-exim:x:65001:65001::/:/bin/false
opensmtpd:x:65002:65002::/var/empty:/bin/false
opensmtpq:x:65003:65003::/var/empty:/bin/false
postfix:x:65004:65004::/:/bin/false
PASSWD
cat >> "$state/group" << 'GROUP'
Debian-exim:x:65001:
opensmtpd:x:65002:
opensmtpq:x:65003:
postfix:x:65004:
postdrop:x:65005:
GROUP
mount --bind "$state/passwd" /etc/passwd
mount --bind "$state/group" /etc/group
mount -t overlay overlay -o "lowerdir=$folder/usr:/usr" /usr
mount -t tmpfs none /var/spool
mount -t tmpfs none /var/lib
mkdir -p /var/spool/smtpd /var/spool/postfix /var/spool/exim4 /var/lib/postfix /var/lib/opensmtpd/empty
chmod 711 /var/spool/smtpd
chown Debian-exim /var/spool/exim4
chown postfix /var/lib/postfix
case $server in
exim)
    chown Debian-exim "$state/key.pem"
    configure exim.conf > "$state/exim.conf"
    exec /usr/sbin/exim4 -C "$state/exim.conf" -bdf -oX "$port"
    ;;
opensmtpd)
    configure opensmtpd.conf > "$state/smtpd.conf"
    exec /usr/sbin/smtpd -d -f "$state/smtpd.conf"
    ;;
postfix)
    for queue in active bounce corrupt defer deferred flush hold incoming maildrop pid private public saved trace; do
        mkdir -p "/var/spool/postfix/$queue"
        chown postfix "/var/spool/postfix/$queue"
    done
    chown root /var/spool/postfix/pid
    mkdir -p "$state/postfix/sasl"
    configure postfix.cf > "$state/postfix/main.cf"
    configure postfix.master.cf > "$state/postfix/master.cf"
    configure postfix.sasl.conf > "$state/postfix/sasl/smtpd.conf"
    printf right | saslpasswd2 -c -p -f "$state/logins" -u relay.example pulsa
    chown postfix "$state/logins"
    export LD_LIBRARY_PATH=/usr/lib/postfix
    exec /usr/lib/postfix/sbin/master -c "$state/postfix" -d
    ;;
esac
