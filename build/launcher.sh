#!/bin/sh
# eks-token @VERSION@. This file starts with a POSIX shell script. The rest of it is a Python zip archive.
#
# The script has two parts. First it looks for a fresh answer in the cache and prints it, which takes 1 to 3 ms. It does
# this by the same rules as the section "cache" of eks_token.py: it may miss an answer, but must never print a wrong
# one. If it finds none, it chooses a Python and becomes that Python. Its variables start with et_, so that Python gets
# the variables that the user exported unchanged.
#
# -nt and -ot are new in POSIX issue 8, but every shell in the tests has had them for decades.
# shellcheck disable=SC3013

# et_find_cache: sets et_cache to the cache directory, by the same rule as eks_token.cache_home, or to nothing if it
# cannot be used. /System/Library/CoreServices only exists on macOS, and checking for it is a hundred times cheaper than
# running uname.
et_find_cache() {
	case ${HOME-} in
	/*)
		case ${XDG_CACHE_HOME-} in
		/*) et_cache=$XDG_CACHE_HOME/eks-token ;;
		*)
			if [ -e /System/Library/CoreServices ]; then
				et_cache=$HOME/Library/Caches/eks-token
			else
				et_cache=$HOME/.cache/eks-token
			fi
			;;
		esac
		# A root shell that kept another user's HOME must not use the answers there. Only root owns /; others may be at
		# home in a directory that is not their own, as in OpenShift's containers.
		if ! [ -O "$HOME" ] && [ -O / ]; then
			et_cache=
		fi
		;;
	*) et_cache= ;;
	esac
}

# et_enter: makes the cache directory the current one, unless it is a link or belongs to another user, or we might not
# find the way back. What is then read is in this very directory, even if somebody who can write to a directory above it
# renames things meanwhile. After a link, cd takes .. for the link's own parent, and other programs for that of what it
# leads to. If the current directory was removed, zsh and ksh93 call it a dot.
et_enter() {
	case $et_from$et_cache/ in [!/]* | */../*) return 1 ;; esac
	[ -n "$et_cache" ] && ! [ -h "$et_cache" ] && [ . -ef "$et_from" ] && [ -x "$et_from" ] && cd "$et_cache" || return
	et_inside=yes
	[ -O . ]
}

# et_leave: goes back.
et_leave() {
	[ -n "$et_inside" ] || return 0
	cd "$et_from" || et_lost=yes
	et_inside=
	PWD=$et_from # where set -P is in force, cd has changed it
	if [ -n "$et_old" ]; then OLDPWD=$et_old; else unset OLDPWD; fi
}

# et_plain PART: whether this part of a request can be used in the answer's path as it is. It may only have safe
# characters, no . or .. component and no slash at its end, and must be short enough for a file name. The characters are
# listed one by one because ranges depend on the locale, and the frequent ones come first because dash searches the list
# every time.
et_plain() {
	case /$1/ in
	*[!abcdefghijklmnopqrstuvwxyz/0123456789=_.:@,+ABCDEFGHIJKLMNOPQRSTUVWXYZ-]* | *// | */./* | */../*) return 1 ;;
	esac
	[ ${#1} -le 200 ]
}

# et_variable NAME KIND VALUE: adds a variable to the request, by the rule for its kind in eks_token.py's table, or
# fails: then the request is Python's.
et_variable() {
	case $2 in
	region) [ -z "$et_region" ] || return 0 ;;
	sts) [ "$3" != regional ] || return 0 ;;
	# If a path is relative, or starts with a tilde or a variable, Python makes it absolute.
	path) case $3 in /*) ;; *) return 1 ;; esac ;;
	runtime) case $3 in /run/user/*) return 0 ;; esac ;;
	bus)
		et_user=${3#unix:path=/run/user/}
		et_user=${et_user%/bus}
		case $et_user in
		'' | *[!0123456789]*) ;;
		*) if [ "$3" = "unix:path=/run/user/$et_user/bus" ] && [ -O "/run/user/$et_user" ]; then return 0; fi ;;
		esac
		;;
	esac
	et_plain "$1=$3" || return
	et_line="$et_line$1=$3|"
	et_here="$et_here/$1=$3|"
}

# et_answer ARGUMENT...: prints the fresh answer to this request and ends the script, or returns. Any failure here is a
# miss, and Python reports what is wrong.
et_answer() {
	# yash drops bytes that are not UTF-8 from variables, so two requests could look like the same one.
	[ -z "${YASH_VERSION-}${EKS_TOKEN_DEBUG-}" ] || return
	[ "${EKS_TOKEN_REFRESH-}" != ahead ] || return

	# A request contains the hash of each secret, which only Python can compute.
	# shellcheck disable=SC2157 # build/package.py puts the variables in, here and below, from eks_token.py
	[ -z "@SECRETS@" ] || return

	# The version that kubectl asks for, exactly as kubectl writes it. The newline at the end distinguishes v1 and v1beta1.
	et_info='{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/'
	case ${KUBERNETES_EXEC_INFO-} in
	'' | "${et_info}v1beta1\",\"spec\":{\"interactive\":true}}$et_newline") et_line='v1beta1|' ;;
	"${et_info}v1beta1\",\"spec\":{\"interactive\":false}}$et_newline") et_line='v1beta1|' ;;
	"${et_info}v1\",\"spec\":{\"interactive\":true}}$et_newline") et_line='v1|' ;;
	"${et_info}v1\",\"spec\":{\"interactive\":false}}$et_newline") et_line='v1|' ;;
	*) return ;;
	esac
	et_here=./tokens/$et_line

	et_region=
	for et_word; do
		case $et_word in
		--refresh | --debug) return ;;
		--region | --region=*) et_region=named ;;
		esac
		et_plain "$et_word" || return
		et_line="$et_line$et_word|"
		et_here="$et_here/$et_word|"
	done

	# An extra bar separates the arguments from the variables. Most of them are unset, so one test comes first.
	et_line="$et_line|"
	et_here="$et_here/|"
	et_variable HOME plain "$HOME" || return
	# shellcheck disable=SC2157
	if [ -n "@OTHERS@" ]; then
		@VARIABLES@
	fi

	# The answer is a script, so before running it, make sure that it is the user's own. Opening a pipe would hang.
	[ -f "$et_here/%answer" ] && [ -O "$et_here/%answer" ] && ! [ -h "$et_here/%answer" ] || return
	[ -O "$et_here" ] && ! [ -h "$et_here" ] && [ -O "./tokens" ] && ! [ -h "./tokens" ] || return

	# A file that we have just written is our clock: compare its modification time with that of the answer, which is
	# FRESH_UNTIL. Starting date would double the time this takes. Before Python stores any answer, it makes sure that
	# truncating an empty file updates its time on this file system.
	[ -f ./now ] && ! [ -h ./now ] || return
	{ :; } 9>|./now || return
	[ "$et_here/%answer" -nt "./now" ] || return

	# zsh's echo succeeds even if stdout is closed.
	[ -z "${ZSH_VERSION-}" ] || { :; } >&1 || return

	# The answer compares its own request with $et_line (if the file system ignores case, two requests can have the same
	# path) and checks the files that decided it. If everything is still the same, it prints the token and sets
	# et_printed. In most shells, an error in a file that . runs ends the script, unless `command` comes first.
	et_printed=
	# shellcheck disable=SC1091
	if [ -z "${ZSH_VERSION-}" ]; then
		command . "$et_here/%answer"
	else # under its own name, zsh takes `command` for a program's
		. "$et_here/%answer"
	fi
	[ -n "$et_printed" ] || return
	[ "$et_here/%refresh" -nt "./now" ] || [ "${EKS_TOKEN_REFRESH-}" = off ] || et_refresh "$@"
	exit 0
}

# et_refresh ARGUMENT...: starts a process that signs the next token. Nobody waits for it: it keeps no file open that
# kubectl reads from. Of many calls at once, only one can make the file, which Python removes.
et_refresh() {
	umask 077
	set -C
	{ :; } 9>"$et_here/%claim" || return
	et_leave
	EKS_TOKEN_REFRESH=ahead /bin/sh "$et_file" "$@" </dev/null >/dev/null 2>&1 &
}

# et_start PYTHON ARGUMENT...: runs Python instead of this script, isolated from PYTHON* variables and user packages.
et_start() {
	et_python=$1
	shift
	# A Python that has not reached build/start.py yet answers Ctrl-C with a traceback, so it ignores it until then.
	trap '' INT
	# If the file is empty, or was changed after its manifest was written, run the archive instead. build/check.py, the
	# text after -c, does so too if others could have put another file in its place: a shell cannot see that.
	et_program=$et_cache/app/$et_build/__main__.py
	if [ -n "$et_cache" ] && [ -f "$et_program" ] && [ -O "$et_program" ] && [ -s "$et_program" ] &&
		! [ "$et_program" -nt "$et_cache/app/$et_build/manifest" ]; then
		exec "$et_python" -IS -c '@CHECK@' "$et_program" "$et_file" "$@"
	fi
	exec "$et_python" -I -S "$et_file" "$@"
}

# et_suits PYTHON: whether it is a Python that runs and is new enough. It may only look like one: a shim of a version
# that is not installed, a program for another machine, an empty file (which a shell runs as a script).
et_suits() {
	[ "$("$1" -I -S -c 'import sys; print(sys.version_info >= (3, 10))' 2>/dev/null </dev/null)" = True ]
}

# et_came_up: whether Python came up when we last started it untried. We write our process ID, which Python keeps, to a
# file, and build/start.py removes the file. If it is still there and that process is not, Python failed.
et_came_up() {
	[ -e ./starting ] || [ -h ./starting ] || return 0
	[ -f ./starting ] && ! [ -h ./starting ] && read -r et_pid <./starting && kill -0 "$et_pid"
}

# et_recall: sets et_known to the Python that worked last, as build/start.py remembers it. Trying it first would take
# 10 ms, so we start it right away if it is a safe bet (et_untried): it has not changed since (the record has the date of
# the program), and it came up the last time. A Python that has lost a library, for example, makes one call fail; the
# next one tries it first, and looks for another.
et_recall() {
	[ -f ./python ] && [ -O ./python ] || return
	IFS= read -r et_known <./python
	if ! [ -f "$et_known" ] || ! [ -x "$et_known" ]; then
		et_known=
	elif ! [ "$et_known" -nt ./python ] && ! [ "$et_known" -ot ./python ] && et_came_up && echo $$ >|./starting; then
		et_untried=yes
	fi
}

# et_fail MESSAGE VALUE: ends with one line. A value that could control the terminal is not shown.
et_fail() {
	LC_ALL=C
	case $2 in
	*[![:print:]]*) printf '%s\n' "eks-token: error: $1" ;;
	*) printf '%s%.100s\n' "eks-token: error: $1: " "$2" ;;
	esac >&2
	exit 1
}

# Errors up to here are misses, so nobody needs to see them.
{
	# Bash takes options (SHELLOPTS) and functions from the environment. They must not change what this script does.
	set +aefuvxC
	case ${BASH_VERSION-} in
	?*) unset -f [ cd command echo kill printf read umask ;;
	esac
	et_build=@BUILD@
	et_file=$0
	et_newline='
'
	et_from=$PWD
	et_old=${OLDPWD-}
	et_inside='' et_lost='' et_known='' et_untried=''
	et_find_cache
	if et_enter; then
		et_answer "$@"
		umask 077 # from here on, files are written
		trap '' XFSZ # as in Python: a limit on the size of files is an error, and ends nothing
		et_recall
	else
		et_cache=
	fi
	et_leave
} 2>/dev/null
umask 077
if [ -n "$et_lost" ]; then
	et_fail "cannot go back to the directory" "$et_from"
fi

if [ -n "${EKS_TOKEN_PYTHON-}" ]; then
	case $EKS_TOKEN_PYTHON in
	*/*) [ -n "$et_untried" ] && [ "$EKS_TOKEN_PYTHON" -ef "$et_known" ] && et_start "$EKS_TOKEN_PYTHON" "$@" ;;
	esac
	if ! command -v "$EKS_TOKEN_PYTHON" >/dev/null 2>&1; then
		et_fail "EKS_TOKEN_PYTHON is not a program" "$EKS_TOKEN_PYTHON"
	elif et_suits "$EKS_TOKEN_PYTHON"; then
		et_start "$EKS_TOKEN_PYTHON" "$@"
	fi
	et_fail "EKS_TOKEN_PYTHON is not Python 3.10 or newer" "$EKS_TOKEN_PYTHON"
fi

if [ -n "$et_known" ] && { [ -n "$et_untried" ] || et_suits "$et_known"; }; then
	et_start "$et_known" "$@"
fi

for et_name in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python3.10; do
	et_python=$(command -v "$et_name") || continue
	# macOS's own comes last, because without the developer tools it is a stub that opens a dialog.
	if [ "$et_python" = /usr/bin/python3 ] && [ -e /System/Library/CoreServices ]; then continue; fi
	if et_suits "$et_name"; then et_start "$et_name" "$@"; fi # by name, because ksh quotes a path that has spaces
done

# The PATH of desktop programs is short. These are the places of package managers, python.org and version managers.
et_data=${XDG_DATA_HOME:-${HOME-}/.local/share}
for et_place in /opt/homebrew/bin /usr/local/bin /opt/local/bin /home/linuxbrew/.linuxbrew/bin /usr/pkg/bin \
	/Library/Frameworks/Python.framework/Versions/*/bin /run/current-system/sw/bin /nix/var/nix/profiles/default/bin \
	"${HOME-}"/.nix-profile/bin "${HOME-}"/.local/bin "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/*/bin \
	"${UV_PYTHON_INSTALL_DIR:-$et_data/uv/python}"/*/bin "${MISE_DATA_DIR:-$et_data/mise}"/installs/python/*/bin \
	"${ASDF_DATA_DIR:-${HOME-}/.asdf}"/installs/python/*/bin "${HOME-}"/*conda3/bin "${HOME-}"/miniforge3/bin /usr/bin; do
	for et_python in "$et_place"/python3.1[0-9] "$et_place"/python3; do
		if [ -f "$et_python" ] && [ -x "$et_python" ] && et_suits "$et_python"; then et_start "$et_python" "$@"; fi
	done
done
printf '%s\n' 'eks-token: error: no Python 3.10 or newer was found' \
	'hint: install one, or set EKS_TOKEN_PYTHON to its path' >&2
exit 1
