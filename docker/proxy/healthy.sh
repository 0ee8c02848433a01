#!/bin/sh
# Alpine's Caddy images have BusyBox's wget, Debian's have bash.
url=127.0.0.1:8080/livez
if command -v wget >/dev/null; then
  exec wget -q -O /dev/null "http://$url"
fi
exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/8080 && printf "GET /livez HTTP/1.0\r\n\r\n" >&3 && read -r line <&3 && [[ $line == *" 200 "* ]]'
