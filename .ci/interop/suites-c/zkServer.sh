#!/usr/bin/env bash
# Stands in for the scripts by which the C client's tests start and stop ZooKeeper: starts `meridian server` instead.
# SUITES_SERVER names the binary.
#   zkServer.sh startClean|startCleanReadOnly|startRequireSASLAuth [USERS [read-only]]|start|stop    the one server
#   zkServer.sh start|stop|status FILE.conf                                                  a server of an ensemble
set -u
command=$1
port=22181
tls_port=22281
certificates=/tmp/certs # where the tests look for theirs
work=${TMPDIR:-/tmp}/meridian-suites-c
mkdir -p "$work"

word() { # HOST:PORT WORD
  python3 -c '
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
with socket.create_connection((host, int(port)), 2) as connection:
    connection.sendall(sys.argv[2].encode())
    while part := connection.recv(65536):
        sys.stdout.write(part.decode())
' "$1" "$2" 2> /dev/null
}

stop() { # PIDFILE
  if [[ -r $1 ]]; then
    kill -9 "$(cat "$1")" 2> /dev/null
    while kill -0 "$(cat "$1")" 2> /dev/null; do sleep 0.02; done
    rm -f "$1"
  fi
}

launch() { # CONFIG PIDFILE
  setsid "$SUITES_SERVER" server --config "$1" >> "$work/servers.log" 2>&1 < /dev/null &
  echo -n $! > "$2"
}

await() { # HOST:PORT: until it serves, or for half a minute
  for _ in {1..300}; do
    [[ $(word "$1" srvr) == *Mode:* ]] && return
    sleep 0.1
  done
  echo -n " the server does not serve"
}

sign_itself() { # NAME: a key and a certificate that it signs
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$certificates/$1key.pem" -out "$certificates/$1.crt" -days 2 \
    -subj "/CN=$1" -addext subjectAltName=DNS:localhost,IP:127.0.0.1
}

certify() {
  [[ -r $certificates/client.crt ]] && return
  mkdir -p "$certificates"
  sign_itself root
  # The tests' clients trust this one certificate.
  sign_itself server
  cat "$certificates/serverkey.pem" "$certificates/server.crt" > "$certificates/server.pem"
  openssl req -newkey rsa:2048 -nodes -keyout "$certificates/clientkey.pem" -out "$certificates/client.csr" -subj /CN=client
  openssl x509 -req -in "$certificates/client.csr" -CA "$certificates/root.crt" -CAkey "$certificates/rootkey.pem" \
    -CAcreateserial -days 2 -out "$certificates/client.crt" -extfile <(echo extendedKeyUsage=clientAuth)
}

configure() { # LINES...
  cat << LINES
tickTime=500
initLimit=10
syncLimit=5
dataDir=$work/data
maxClientCnxns=${ZKMAXCNXNS:-100}
clientPort=$port
secureClientPort=$tls_port
ssl.keyStore.location=$certificates/server.pem
ssl.trustStore.location=$certificates/root.crt
ssl.keyStore.type=PEM
ssl.trustStore.type=PEM
localSessionsEnabled=true
extendedTypesEnabled=true
znode.container.checkIntervalMs=100
4lw.commands.whitelist=*
admin.enableServer=false
LINES
  printf '%s\n' "$@"
}

alone=
[[ $# -ge 2 && -r $2 && $command != startRequireSASLAuth ]] || alone=yes

if [[ -z $alone ]]; then
  config=$2
  pid=$config.pid
  address=localhost:$(sed -n 's/^clientPort=//p' "$config")
  case $command in
    start)
      # Properties of the Java process, which the tests pass by the environment.
      {
        cat "$config"
        echo admin.enableServer=false
        grep -oE 'D[A-Za-z0-9.]+=[^ ]+' <<< "${SERVER_JVMFLAGS:-}" | sed 's/^D//'
      } > "$config.whole"
      launch "$config.whole" "$pid"
      ;;
    stop) stop "$pid" ;;
    status) word "$address" srvr ;;
  esac
  exit 0
fi

stop "$work/pid"
lines=()
case $command in
  stop) exit 0 ;;
  startClean) rm -rf "$work/data" ;;
  startRequireSASLAuth)
    users=${2:-$work/nobody.conf}
    # A server that requires SASL needs somebody who may log in.
    echo 'Server { user_nobody="x"; };' > "$work/nobody.conf"
    lines=(sessionRequireClientSASLAuth=true "java.security.auth.login.config=$users")
    ;;
esac
if [[ $command == startCleanReadOnly || -n ${3:-} ]]; then
  [[ $command == startRequireSASLAuth ]] || rm -rf "$work/data"
  lines+=(readonlymode.enabled=true server.1=localhost:22881:33881 server.2=localhost:22882:33882 server.3=localhost:22883:33883)
fi
mkdir -p "$work/data"
echo 1 > "$work/data/myid"
certify 2>> "$work/certificates.log" >&2
configure "${lines[@]}" > "$work/zoo.cfg"
launch "$work/zoo.cfg" "$work/pid"
await "127.0.0.1:$port"
