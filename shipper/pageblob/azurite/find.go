package azurite

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// EnvBinary names the environment variable that holds the path of the azurite executable; azurite-blob must be beside
// it, as npm installs it.
const EnvBinary = "AZURITE"

// ErrMissing is wrapped by every error that says Azurite, or the node it runs on, is not installed.
var ErrMissing = errors.New("azurite is not installed: run `make tools`, or set AZURITE to the path of its executable")

// relative is where `make tools` installs Azurite, below the root of the module.
var relative = filepath.Join(".tools", "node_modules", ".bin", "azurite")

// Find returns the path of the azurite-blob executable: beside the one that the environment variable AZURITE names,
// else in .tools of the module the working directory is in. The error wraps ErrMissing.
func Find() (string, error) {
	if _, err := exec.LookPath("node"); err != nil {
		return "", fmt.Errorf("%w (no node in the path)", ErrMissing)
	}
	if path := os.Getenv(EnvBinary); path != "" {
		return blobBeside(path)
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return blobBeside(filepath.Join(root, relative))
}

// blobBeside returns the blob-only executable of the installation that path belongs to. azurite itself would open the
// ports of queue and table too.
func blobBeside(path string) (string, error) {
	blob := filepath.Join(filepath.Dir(path), "azurite-blob")
	info, err := os.Stat(blob)
	if err != nil {
		return "", fmt.Errorf("%w (%v)", ErrMissing, err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%w (%s is no executable)", ErrMissing, blob)
	}
	return filepath.Abs(blob)
}

// moduleRoot walks up from the working directory to the directory with go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("%w (%v)", ErrMissing, err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("%w (no go.mod above the working directory)", ErrMissing)
		}
		dir = parent
	}
}
