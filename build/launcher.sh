#!/bin/sh
# eks-token @VERSION@. The head of this file is a POSIX shell script, the rest of it a Python zip archive.
#
# The script prints a fresh answer from the cache, in a millisecond or two, and leaves everything else to Python. It
# looks an answer up by the same rule as the section "cache" of eks_token.py; it may miss, and it may never be wrong. Its
# variables begin with et_, so that none of the user's exported ones changes on the way to Python.
#
# -nt and -ot came to POSIX with its eighth issue; every shell named in the tests has had them for decades.
# shellcheck disable=SC3013

et_build=@BUILD@
et_file=$0
et_newline='
'
umask 077

# The cache directory, as eks_token.cache_home has it. /System/Library/CoreServices exists on macOS alone, and a look
# at it is a hundred times cheaper than uname.
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
	# Neither a link nor another user's directory is read or run from; and the HOME is the user's own, which keeps a
	# root shell that kept somebody's HOME away from the answers there.
	if ! [ -O "$et_cache" ] || [ -h "$et_cache" ] || ! [ -O "$HOME" ]; then
		et_cache=
	fi
	;;
*) et_cache= ;;
esac

# et_plain PART: whether the part of a request stands for itself in the answer's path. Safe characters only, spelled
# out since a range means other things in other locales (the frequent ones first, as dash looks through them for each
# character); no empty, . or .. component; short enough for a file name.
et_plain() {
	case /$1/ in
	*[!abcdefghijklmnopqrstuvwxyz/0123456789=_.:@,+ABCDEFGHIJKLMNOPQRSTUVWXYZ-]* | *//* | */./* | */../*) return 1 ;;
	esac
	[ ${#1} -le 200 ]
}

# et_answer ARGUMENT...: prints the fresh answer to this request and ends the script, or returns. Called with stderr
# shut, and kept for cat as descriptor 3: what fails on the way is a miss, and Python's to report.
et_answer() {
	# yash drops bytes that are no UTF-8 from variables: two requests could look like one.
	[ -z "${YASH_VERSION-}${EKS_TOKEN_DEBUG-}" ] || return

	# Secrets enter a request as their hash, which only Python can make.
	et_secrets=@SECRETS@
	[ -z "$et_secrets" ] || return

	# The version that kubectl asks for, in kubectl's own words. The newline at their end tells v1 from v1beta1.
	et_info='{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/'
	case ${KUBERNETES_EXEC_INFO-} in
	'' | "${et_info}v1beta1\",\"spec\":{\"interactive\":true}}$et_newline") et_line='v1beta1|' ;;
	"${et_info}v1beta1\",\"spec\":{\"interactive\":false}}$et_newline") et_line='v1beta1|' ;;
	"${et_info}v1\",\"spec\":{\"interactive\":true}}$et_newline") et_line='v1|' ;;
	"${et_info}v1\",\"spec\":{\"interactive\":false}}$et_newline") et_line='v1|' ;;
	*) return ;;
	esac
	et_here=$et_cache/tokens/$et_line

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

	# A bar of its own parts the arguments from the variables.
	et_line="$et_line|"
	et_here="$et_here/|"
	# shellcheck disable=SC2043 # build/package.py puts in all of them, from eks_token.py
	for et_name in \
		@VARIABLES@; do
		eval "et_value=\${$et_name-}"
		[ -n "$et_value" ] || continue
		case $et_name in
		@REGIONS@) [ -z "$et_region" ] || continue ;;
		AWS_STS_REGIONAL_ENDPOINTS) [ "$et_value" != regional ] || continue ;;
		# These name files: what is relative, or begins with a tilde or a variable, is made absolute by Python.
		@PATHS@)
			case $et_value in /*) ;; *) return ;; esac
			;;
		esac
		et_plain "$et_name=$et_value" || return
		et_line="$et_line$et_name=$et_value|"
		et_here="$et_here/$et_name=$et_value|"
	done

	# The clock is the modification time of a file just written: FRESH_UNTIL is that of the answer, ISSUED that of the
	# request's record. (A process for date would double the time this takes. Python makes sure that emptying an empty
	# file dates it anew here, before it leaves any answer.)
	[ -O "$et_here/%answer" ] || return
	{ :; } >|"$et_cache/now" || return
	[ "$et_here/%answer" -nt "$et_cache/now" ] || return
	if [ "$et_here/%request" -nt "$et_cache/now" ]; then return; fi

	# The record names the request (a file system that folds case leads two requests to one path) and the AWS files
	# that were read for the answer, each with a stamp of its modification time then. A record that was cut short lacks
	# its last line.
	{
		# shellcheck disable=SC2034 # ISSUED and FRESH_UNTIL are for Python: here the files' times say the same
		read -r et_tag et_issued et_fresh et_request || return
		[ "$et_tag $et_request" = "eks-token-1 $et_line" ] || return
		while :; do
			read -r et_stamp et_name || return
			case $et_stamp in
			end) break ;;
			absent) if [ -e "$et_name" ]; then return; fi ;;
			*)
				[ -e "$et_name" ] && [ -e "$et_here/$et_stamp" ] || return
				if [ "$et_name" -nt "$et_here/$et_stamp" ] || [ "$et_name" -ot "$et_here/$et_stamp" ]; then return; fi
				;;
			esac
		done
	} <"$et_here/%request" || return

	# Opened before cat is started: if the cache is emptied just now there is still Python to ask. Without a locale to
	# load cat takes a fifth less, and nothing comes after it.
	{
		LC_ALL=C
		export LC_ALL
		exec cat 2>&3 3>&-
	} <"$et_here/%answer"
}

# et_start PYTHON ARGUMENT...: hands over to Python, isolated from its environment variables and the user's packages.
et_start() {
	et_python=$1
	shift
	# One that is empty, or was written to after its manifest, would not do what it is for; the archive will.
	if [ -n "$et_cache" ] && [ -O "$et_cache/app/$et_build/__main__.py" ] &&
		[ -s "$et_cache/app/$et_build/__main__.py" ] &&
		! [ "$et_cache/app/$et_build/__main__.py" -nt "$et_cache/app/$et_build/manifest" ]; then
		exec "$et_python" -I -S "$et_cache/app/$et_build/__main__.py" "$et_file" "$@"
	fi
	exec "$et_python" -I -S "$et_file" "$@"
}

# et_suits PYTHON: whether it runs (a shim of a version manager may be there and not run) and is new enough.
et_suits() {
	"$1" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "$et_cache" ]; then
	et_answer "$@" 3>&2 2>/dev/null || : # the shell may have been told, in SHELLOPTS, to end at what fails
fi

if [ -n "${EKS_TOKEN_PYTHON-}" ]; then
	if ! command -v "$EKS_TOKEN_PYTHON" >/dev/null 2>&1; then
		printf '%s\n' "eks-token: error: EKS_TOKEN_PYTHON is no program: $EKS_TOKEN_PYTHON" >&2
		exit 1
	fi
	et_start "$EKS_TOKEN_PYTHON" "$@"
fi

# The interpreter that worked last, written by build/start.py.
if [ -n "$et_cache" ] && [ -O "$et_cache/python" ]; then
	et_python=
	{ read -r et_python <"$et_cache/python"; } 2>/dev/null
	if [ -x "$et_python" ] && [ ! -d "$et_python" ]; then
		et_start "$et_python" "$@"
	fi
fi

# macOS's own python3 comes last: without the developer tools it is a stub that opens a dialogue.
et_last=
for et_name in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do
	et_python=$(command -v "$et_name") || continue
	if [ "$et_python" = /usr/bin/python3 ] && [ -e /System/Library/CoreServices ]; then
		et_last=$et_python
	elif et_suits "$et_name"; then # by its name: ksh quotes a path that has spaces
		et_start "$et_name" "$@"
	fi
done
if [ -n "$et_last" ] && et_suits "$et_last"; then
	et_start "$et_last" "$@"
fi
printf '%s\n' 'eks-token: error: no Python 3.11 or newer was found' \
	'hint: install one, or name it in EKS_TOKEN_PYTHON' >&2
exit 1
