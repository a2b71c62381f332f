class EksToken < Formula
  desc "Bearer tokens for EKS clusters from credentials in the OS keyring"
  homepage "https://github.com/@REPOSITORY@"
  url "https://github.com/@REPOSITORY@/releases/download/v@VERSION@/eks-token-@VERSION@.zip"
  sha256 "@SHA256@"
  license "MIT"

  depends_on "python@3.14"

  def install
    bin.install "eks-token"
    generate_completions_from_executable(bin/"eks-token", "completion")
  end

  test do
    assert_match "eks-token #{version}", shell_output("#{bin}/eks-token --version")
  end
end
